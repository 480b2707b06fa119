"""Loading a model, and starting a server with one."""
