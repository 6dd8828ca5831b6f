"""Layers for PyTorch whose forward and backward run on the server, one request each."""

from exodus_client.torch.remote_coupled import RemoteALIF, RemoteCubaLIF
from exodus_client.torch.remote_lif import RemoteLIF, remote_lif
from exodus_client.torch.remote_neuron import remote_neurons

__all__ = ["RemoteALIF", "RemoteCubaLIF", "RemoteLIF", "remote_lif", "remote_neurons"]
