"""Benchmarks: the kernels, the service over HTTP, and training on a server, each against its peers."""
