"""How fast the way over HTTP is: the service against a bare FastAPI echo, the client against httpx."""
