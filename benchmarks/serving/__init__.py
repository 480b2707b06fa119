"""The whole graph beside other servers, as a client sees them: `python -m benchmarks.serving`."""
