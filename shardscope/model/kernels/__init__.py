"""Triton kernels for CUDA, each with the plain PyTorch that it must equal beside it. Importing them needs no Triton."""
