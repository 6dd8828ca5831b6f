"""Programs to copy from: each trainer is one file, and trains on a remote service or in its own process."""
