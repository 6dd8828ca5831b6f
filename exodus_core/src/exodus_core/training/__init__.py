"""Training of one network: forward, backward, optimiser step and the whole state; a call that fails changes nothing.

`Trainer` gives the same bits as the plain torch loop with the same loss and optimiser. See docs/networks.md.
"""

from exodus_core.training.errors import ContextStaleError, NonFiniteError, StateError
from exodus_core.training.optimizer import OPTIMIZERS, Optimizer, OptimizerError, parse_optimizer
from exodus_core.training.pure_forward import Forward
from exodus_core.training.trainer import StepResult, Trainer
from exodus_core.training.weights import LoadedWeights

__all__ = [
    "OPTIMIZERS",
    "ContextStaleError",
    "Forward",
    "LoadedWeights",
    "NonFiniteError",
    "Optimizer",
    "OptimizerError",
    "StateError",
    "StepResult",
    "Trainer",
    "parse_optimizer",
]
