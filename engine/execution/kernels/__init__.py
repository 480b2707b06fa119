"""Kernels in Triton, for CUDA."""
