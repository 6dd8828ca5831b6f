"""Data parallel training on several servers."""
