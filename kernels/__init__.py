"""Hand-written Triton, imported as fusec.kernels.

device.py       helpers that generated code calls: those of elementwise.py and rows.py
interpreted.py  the same helpers for Triton's interpreter
philox.py       random bits on PyTorch tensors: the same numbers outside a kernel
softmax.py, layer_norm.py, rms_norm.py, swiglu.py
                one tuned op a file: the yardsticks that bench/ holds generated kernels against
launch.py       what the yardsticks share: how a row becomes a tile, what a launcher accepts
"""
