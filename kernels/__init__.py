"""Hand-written Triton, imported as fusec.kernels.

    device.py       helpers that generated code calls
    softmax.py, layer_norm.py, rms_norm.py, swiglu.py
                    one tuned op a file: the yardsticks that bench/ holds generated kernels against
    launch.py       what the yardsticks share: row blocks, warps, grids
"""
