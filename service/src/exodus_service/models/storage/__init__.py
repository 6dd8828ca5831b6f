"""Checkpoints of models on disk: written, found, restored."""
