"""The route of Anthropic's Messages API."""
