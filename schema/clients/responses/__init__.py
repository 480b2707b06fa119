"""Requests of OpenAI's Responses API, and the tasks that they mean."""

from schema.clients.responses.request import ResponsesRequest

__all__ = ["ResponsesRequest"]
