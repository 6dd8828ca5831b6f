"""The figures of the EXODUS paper (arXiv 2205.10242), computed by this code; each module is a command."""
