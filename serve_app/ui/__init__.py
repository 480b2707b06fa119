"""The web chat: a second Ray Serve application, which is a client of the server's own routes."""
