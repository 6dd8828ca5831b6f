"""Connection to a server: HTTP with retries, over sockets or shared memory."""
