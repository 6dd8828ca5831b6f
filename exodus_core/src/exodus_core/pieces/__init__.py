"""Long sequences in pieces of time: checkpoints, and the states that layers carry from piece to piece."""
