"""The computing thread with its queue and admission control, and the memory that it keeps between computations."""
