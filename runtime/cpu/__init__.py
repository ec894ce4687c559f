"""The kernels and the entropy coder on the CPU: Cython around the C++ cores of ``runtime/cpp``."""
