"""Certificates of neurons with a synaptic current, an adaptation, a refractory period and other resets."""

from exodus_core.verify.coupled.runs import CoupledRun, run_coupled

__all__ = ["CoupledRun", "run_coupled"]
