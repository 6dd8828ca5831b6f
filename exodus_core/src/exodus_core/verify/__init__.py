"""Gradients with a certificate: how far those of a run are from the exact ones, and which bound they keep.

    run = run_lif(x, 0.95, grad_spikes, surrogate=Boxcar())
    certificate = certify(run)
    certificate.kept, certificate.gradients["input"].ulps

`run_srm` runs SRM neurons, `run_coupled` those with a current, an adaptation, a refractory period and other resets.

An input is a finite float, so a rational; and so is the gradient, given the spikes, if the surrogate is a boxcar, a
triangle or a fast sigmoid. Of the other surrogates it is a ball of python-flint (the extra `verify`). docs/verify.md
says what is certified, and derives the bounds.
"""

from exodus_core.verify.certificate import certify
from exodus_core.verify.coupled import CoupledRun, run_coupled
from exodus_core.verify.deviation import Certificate, Decisions, Deviation
from exodus_core.verify.runs import LifRun, SrmRun, run_lif, run_srm

__all__ = [
    "Certificate",
    "CoupledRun",
    "Decisions",
    "Deviation",
    "LifRun",
    "SrmRun",
    "certify",
    "run_coupled",
    "run_lif",
    "run_srm",
]
