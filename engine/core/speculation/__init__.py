"""Several tokens of a sequence in one step: guessed ones, and ones that are known already."""
