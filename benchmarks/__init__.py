"""Measurements that are too slow for the tests: `python -m benchmarks.engine`."""
