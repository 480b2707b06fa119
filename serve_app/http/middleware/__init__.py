"""The middlewares that every request passes: log, CORS, keys and limits."""
