"""What is measured of a model when it is loaded: what works, and at which sizes."""
