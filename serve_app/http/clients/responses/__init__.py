"""The route of OpenAI's Responses API."""
