"""Triton kernels for one step on an NVIDIA GPU, one operation per file, each beside the PyTorch it must equal.

Importing a module of this package needs Triton. With ``TRITON_INTERPRET=1`` they run on the CPU.
"""
