"""Requests as OpenAI's clients send them, and the tasks that they mean."""

from schema.clients.openai.chat import ChatCompletionRequest
from schema.clients.openai.completion import CompletionRequest
from schema.clients.openai.request import OpenAIRequest

__all__ = ["ChatCompletionRequest", "CompletionRequest", "OpenAIRequest"]
