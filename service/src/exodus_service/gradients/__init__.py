"""Stateless gradient requests: parameters, tensors, computation."""
