"""The thread that computes, and the queue in front of it."""
