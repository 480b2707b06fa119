"""Measured costs of the graph's parts, and a simulation of many replicas made of them."""
