"""Programs to copy from: training loops whose spiking layers run on a remote service."""
