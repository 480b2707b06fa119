"""Ray Serve deployments: ingress, image preprocessor, one model deployment per model."""
