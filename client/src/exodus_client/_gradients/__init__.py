"""Gradient requests as messages, and their results."""
