"""Weights that are quantized: while they are loaded, or in the files already."""
