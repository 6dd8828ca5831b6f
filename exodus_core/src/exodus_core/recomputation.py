"""Refuses to recompute layers whose result depends on earlier calls: it would silently differ."""

from __future__ import annotations

import torch


def refuse_recomputation(what: str, instead: str) -> None:
    """Raises RuntimeError during a backward pass, from which torch.utils.checkpoint calls a layer again.

    A graph that is being compiled has no backward pass yet: there, an operator marks what may not be recomputed.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{what} must not be recomputed in a backward pass, as torch.utils.checkpoint does: it would not start "
            f"from where the first call did; leave it out of the checkpoint, or {instead}"
        )
