"""Checks of the CUDA kernels on a machine without a GPU: the machine code, and the memory traffic in the emulation."""
