"""Benchmark of the neurons on the CPU: against other libraries, and against the limits of the machine."""
