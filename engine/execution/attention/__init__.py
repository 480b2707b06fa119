"""Attention over the paged KV cache, one module for each way to compute it."""
