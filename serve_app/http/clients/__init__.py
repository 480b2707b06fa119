"""The APIs of clients: OpenAI's two, and Anthropic's, as renderings of the same tasks."""
