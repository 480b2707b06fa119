"""Speculation in the engine: how much faster answers come with it than without."""
