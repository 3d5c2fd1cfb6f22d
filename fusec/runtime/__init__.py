"""KernelSources and wrapper text to an Executable: built, cached, launched on a GPU or interpreted on the CPU.

build        sources -> Executable: keys, cache, compilation        compiler, worker  text -> cubin, in processes
executable   a call: inputs checked, the wrapper run, outputs       cache             verified files on disk
launch       one kernel: CUDA binding or interpreter                resources         registers, spills, SASS counts
interpret    kernel text on CPU tensors                             numpy_semantics, memory  what its operations mean
meter        bytes moved, counted                                   tune, graphs      measured tiles, CUDA graphs
"""
