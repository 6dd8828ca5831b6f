"""Trains over HTTP while the server is killed and the network fails, and compares with training undisturbed."""
