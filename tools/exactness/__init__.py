"""Compares the gradients of the kernels with autograd through the plain loop in float64, for every setting."""
