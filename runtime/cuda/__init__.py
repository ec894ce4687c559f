"""CUDA: the driver, device memory and streams, and the kernels."""
