"""Strict JSON, and errors that name the field and the way out."""
