"""Checkpoints of models on disk: folders, files and the thread that writes them. Knows nothing of models in memory."""
