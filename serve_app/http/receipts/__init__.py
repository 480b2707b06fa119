"""Receipts: the keys that sign them, how they are made, and the route of the public keys."""
