"""Verification of answers over HTTP: what it costs, and what it finds."""
