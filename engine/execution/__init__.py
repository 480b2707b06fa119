"""Runs forwards at verified batch sizes: model runner, KV cache, invariance check."""
