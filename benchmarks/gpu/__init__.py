"""Parts of `benchmarks/gpu_check.py`: each tests or measures one thing on a GPU within its own time limit."""
