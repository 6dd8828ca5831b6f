"""Layers for PyTorch whose forward and backward run on the server, one request each."""

from exodus_client.torch.remote_lif import RemoteLIF, remote_lif

__all__ = ["RemoteLIF", "remote_lif"]
