"""Checks that are no tests: exactness, what the CUDA kernels need, training under failures, the container images."""
