"""Layers and training steps of spikes, computed from the spikes and by dense products."""
