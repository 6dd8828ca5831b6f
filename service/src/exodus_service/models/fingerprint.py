"""Whether a trainer has changed: told by counting changes, without looking at a value."""

import torch

from exodus_core.training import Trainer

Fingerprint = list[tuple[torch.Tensor, int]]


def fingerprint(trainer: Trainer) -> Fingerprint:
    """Everything that training changes, each with the number of its changes so far."""
    found: list[torch.Tensor] = [*trainer.net.buffers()]
    for parameter in trainer.net.parameters():
        found.append(parameter)
        if parameter.grad is not None:
            found.append(parameter.grad)
        slots = trainer.optimizer.state.get(parameter, {}).values()
        found += [slot for slot in slots if isinstance(slot, torch.Tensor)]
    return [(tensor, tensor._version) for tensor in found]


def same(before: Fingerprint, after: Fingerprint) -> bool:
    """Whether nothing has changed from one to the other."""
    return len(before) == len(after) and all(
        old is new and version == now for (old, version), (new, now) in zip(before, after, strict=True)
    )
