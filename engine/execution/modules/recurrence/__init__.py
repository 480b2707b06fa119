"""Layers that keep a state instead of keys and values: for each sequence from its own state."""
