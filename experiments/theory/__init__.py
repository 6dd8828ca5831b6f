"""The theory of the EXODUS paper, checked in float64 on small cases: `python -m experiments.theory`."""
