"""Experimental data parallel training on a few servers: all gradients pass through the client, in two round trips.

A step takes as long as the slowest server and the client's network take. Servers exchange nothing with each other; for
large clusters `torch.distributed` is made.
"""
