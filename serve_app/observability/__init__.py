"""Metrics, log lines and names of processes."""
