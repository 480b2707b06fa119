"""Requests as OpenAI's clients send them, and the tasks that they mean."""

from schema.openai.chat import ChatCompletionRequest
from schema.openai.completion import CompletionRequest
from schema.openai.request import OpenAIRequest

__all__ = ["ChatCompletionRequest", "CompletionRequest", "OpenAIRequest"]
