"""What every request passes: log, CORS, keys and limits."""
