"""Benchmark of requests over HTTP: the service against a bare FastAPI echo, the client against httpx."""
