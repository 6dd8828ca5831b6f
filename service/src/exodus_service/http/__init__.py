"""HTTP: the only part of the service that knows FastAPI, starlette and uvicorn."""
