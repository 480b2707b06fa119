"""The description of the API: OpenAPI and its page."""
