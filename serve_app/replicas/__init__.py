"""The deployments that compute: models, models on demand, images."""
