"""HTTP with retries, over sockets or shared memory."""
