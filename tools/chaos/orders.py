"""Orders of the harness for one life of the server: how it is to end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Places in the computation and the answer where a server can be ordered to die; those of a save are traced.
COMPUTING = (
    "before the forward pass",
    "between forward and backward pass",
    "weights changed, call not recorded",
    "call recorded, answer not sent",
)
KERNELS = ("inside the kernel, forward", "inside the kernel, backward")
#: Where a server was that should have died in a kernel, and had just left it; it is tried again.
LATE = "just after the kernel"
#: Every answer is held back until a state is durable that has them: they must come from disk then.
HELD = "state saved, answers held back"
ANSWERING = (HELD, "before the answer's head", "half of the answer's body sent", "after the answer's last byte")
STARTING = ("folder being tidied", "model being loaded", "model loaded, call not begun")


@dataclass(frozen=True)
class Order:
    """The end of one life of the server.

    Attributes:
        kind: what the table counts it under.
        point: where the server kills itself with SIGKILL; "" for a kill from outside, or none.
        nth: at which time that it comes there.
        power_loss: what was not synced to disk is lost with it.
        after: for a signal from outside: seconds after the server was ready; None: it is ordered by other means.
        from_fork: `after` counts from the start of the process instead.
        signal: sent from outside; 0 for none.
    """

    kind: str = "none"
    point: str = ""
    nth: int = 1
    power_loss: bool = False
    after: float | None = None
    from_fork: bool = False
    signal: int = 0

    def plain(self) -> dict[str, Any]:
        return asdict(self)
