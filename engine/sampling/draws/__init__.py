"""Random numbers, and the tokens that they choose."""
