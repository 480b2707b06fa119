"""Requests of Anthropic's Messages API, and the tasks that they mean."""

from schema.clients.anthropic.request import MessagesRequest

__all__ = ["MessagesRequest"]
