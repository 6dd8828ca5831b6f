"""Benchmark of training on a server against the same training in the process."""
