"""What a step computes: which tasks run, what they share, and how many rows of prompts it takes."""
