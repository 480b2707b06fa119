"""Calls from the ingress into the graph: routing, replay, load shedding."""
