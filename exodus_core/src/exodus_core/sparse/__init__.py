"""Spikes as bits, and products and convolutions that are computed from few spikes."""
