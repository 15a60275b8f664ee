"""The Triton kernels of the cuda device."""
