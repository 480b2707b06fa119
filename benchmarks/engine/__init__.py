"""The engine in its own process, without a server."""
