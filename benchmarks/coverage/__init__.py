"""Which architectures of transformers the engine runs, and in which way."""
