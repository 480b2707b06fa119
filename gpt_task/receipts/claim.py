"""A request and what is said to be its response, in the form in which receipts speak of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TASK_ROUTE = "/v1/tasks"
CHAT_ROUTE = "/v1/chat/completions"
COMPLETION_ROUTE = "/v1/completions"

_MESSAGE_FIELDS = ("reasoning_content", "tool_calls")
"""Of a task's message, beside role and content; absent where they are empty."""


class ReceiptWrong(Exception):  # noqa: N818 - what was found, and no fault of the program
    """The receipt is not what the server has signed, or not of this request and response."""


class Uncheckable(Exception):  # noqa: N818 - as above
    """It cannot be said whether the receipt is right: something that is needed is not there."""


@dataclass(frozen=True)
class Claim:
    """What a file holds.

    Attributes:
        request: as the client sent it.
        response: as the server answered, with its receipt.
        is_task: whether the request is said to be a task.
    """

    request: dict[str, Any]
    response: dict[str, Any]
    is_task: bool

    @property
    def receipt(self) -> Any:
        """The response's receipt, of any form. Raises `Uncheckable` if there is none."""
        if "receipt" not in self.response:
            raise Uncheckable("the response has no receipt; ask with receipt: true")
        return self.response["receipt"]

    def choices(self) -> list[dict[str, Any]]:
        """The response's choices as the response to a task has them.

        Raises:
            ReceiptWrong: they have another form than the server's.
        """
        choices = self.response.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise ReceiptWrong("response.choices: must be a list of choices")
        return [self._choice(number, choice) for number, choice in enumerate(choices)]

    def _choice(self, number: int, choice: dict[str, Any]) -> dict[str, Any]:
        if "text" in choice:
            return {**choice, "message": {"role": "assistant", "content": choice["text"]}}
        message = choice.get("message")
        if not isinstance(message, dict):
            raise ReceiptWrong(f"response.choices.{number}.message: must be a message")
        if self.response.get("object") != "chat.completion":
            return choice
        told = {name: value for name, value in message.items() if value or name == "content"}
        other = set(told) - {"role", "content", *_MESSAGE_FIELDS}
        if other:
            raise ReceiptWrong(
                f"response.choices.{number}.message.{min(other)}: the server has not said this"
            )
        return {**choice, "message": {**told, "content": message.get("content") or ""}}
