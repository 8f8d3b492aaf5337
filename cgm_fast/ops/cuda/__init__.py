"""What the CUDA C++ implementations of all ops share: how their kernels are launched."""
