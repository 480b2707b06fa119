"""The chat template: what a model's own reads, and what is written into messages in its place."""
