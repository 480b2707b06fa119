"""The ingress: routes, bodies and server-sent events."""
