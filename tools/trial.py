"""Prints where exodus_core comes from and a digest of what it computes: spikes, membranes, gradients, a filter."""

import hashlib

import torch

import exodus_core

torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    x = torch.randn(3, 50, 17, dtype=dtype, requires_grad=True)
    alpha = torch.full((17,), 0.9, dtype=exodus_core.ops.compute_dtype(dtype), requires_grad=True)
    spikes, membrane = exodus_core.lif(x, alpha)
    (spikes.sum() + membrane.float().square().sum()).backward()
    assert x.grad is not None
    assert alpha.grad is not None
    filtered = exodus_core.filter(x.detach(), exodus_core.ExponentialKernel(0.8))
    for tensor in (spikes, membrane, x.grad, alpha.grad, filtered):
        digest.update(tensor.detach().double().numpy().tobytes())
print(exodus_core.__file__, digest.hexdigest())
