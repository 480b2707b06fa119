"""The JSON Schemas that this project publishes."""
