"""What a machine has, and whether it computes correctly."""
