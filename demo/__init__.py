"""The demo model: an InternVL of 1.6 M parameters, trained from scratch on a CPU."""
