"""The demo model, an InternVL of 1.6 M parameters trained on a CPU; and SmolLM2 without a hub."""
