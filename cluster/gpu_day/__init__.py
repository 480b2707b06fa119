"""The claims about CUDA that nobody has run yet, tried on one machine in ten minutes."""
