"""Everything that can go wrong with a task, as one tree.

::

    TaskError
    ├── TaskArgsInvalid      400  the task breaks the contract; `param` is the path of the field
    │   ├── UnknownParameter 400  there is no such field
    │   ├── MissingParameter 400  a field that is required is absent
    │   ├── InvalidType      400  the value is of another JSON type
    │   ├── UnsupportedParameter 400  a field of other servers that would change the answer
    │   ├── ImageInvalid     400  an image cannot be decoded
    │   └── ContextLengthExceeded 400  prompt and answer do not fit into the model's context
    ├── ModelInvalid         404  no such model here: unknown, not configured, kind not supported
    │   ├── ModelRevisionInvalid  404  the repository has no such branch, tag or commit
    │   ├── ModelGated       403  the hub gives it only to accounts that accepted its licence
    │   ├── ModelUnsafe      404  its files would run code: a pickle, or Python of the repository
    │   ├── ModelCorrupt     404  its files are damaged
    │   └── ModelFormatUnsupported 404  its weights are quantized in a way that is not read here
    ├── ModelNotDownloaded   404  a known model whose files are not on this machine
    │   └── ModelIncomplete  404  some of its files are here, others are missing: half a download
    ├── ModelDownloadError   502  the hub did not deliver the model
    ├── ImageDownloadError   502  the host of an image's address did not deliver it
    ├── OutOfMemory          507  this task does not fit on this machine, now or later
    ├── TaskExecutionError   500  the model failed while it ran: our fault, not the task's
    │   ├── EngineStopped    503  the engine of the task is gone; a retry gives the same answer
    │   └── ReplayDiffers    500  in a retry after such a loss, the answer began differently
    ├── Overloaded           503  no room now; try again after `retry_after_s` seconds
    ├── Cancelled            499  the client has disconnected
    ├── InvalidApiKey        401  the server wants a key, and this is not one of its keys
    ├── RateLimited          429  this key asks too often; try again after `retry_after_s` seconds
    ├── BodyTimeout          408  the body did not arrive in time
    ├── RequestTooLarge      413  the body is larger than the server reads
    └── RequestTimeout       504  the task took longer than the server waits

Why these codes, where a choice was open:

* Where OpenAI's API has a `type` or a `code` for a situation, it is used here, because clients
  compare it: some shorten the conversation on `context_length_exceeded`, some wait on
  `server_is_overloaded`. `docs/api.md` has the table.
* `ModelNotDownloaded` is a 404 and not a 503, because a retry does not help: an operator has to
  fetch the files first. Its `code` distinguishes it from an unknown model.
* `ModelDownloadError` and `ImageDownloadError` are 502s: the server asked another, which failed.
* `OutOfMemory` is a 507 and not a 503. Memory for the worst case is reserved before a task starts,
  so a task that runs out of memory will do so again; a client that retries every 503 must not.
* `RateLimited` (429) is caused by the client itself and `Overloaded` (503) is not.
* 499 is nginx's code for a client that closed the connection; there is no standard code for it.

All arguments reach `Exception.__init__`, so that errors survive pickling between Ray's processes.
"""

# ruff: noqa: N818 - the names are part of the contract, which is older than this code.

from typing import ClassVar, Literal

from pydantic import with_config
from typing_extensions import TypedDict

ErrorType = Literal[
    "invalid_request_error",
    "rate_limit_error",
    "server_error",
    "service_unavailable_error",
]


@with_config(extra="forbid", strict=True)
class ErrorDetail(TypedDict):
    """What went wrong, for a person (`message`) and for a program (the rest)."""

    message: str
    type: ErrorType
    param: str | None
    code: str


@with_config(extra="forbid", strict=True)
class ErrorResponse(TypedDict):
    """The body of every answer that is not a success, and of a failed stream's last event."""

    error: ErrorDetail


class TaskError(Exception):
    """A task that did not end in a response. Raise one of the subclasses.

    `param` is the dotted path of the field at fault, such as `messages.0.content.1.base64`;
    `retry_after_s` says after how many seconds a retry makes sense, if one does.
    """

    http_status: ClassVar[int] = 500
    type: ClassVar[ErrorType] = "server_error"
    code: ClassVar[str] = "task_error"

    def __init__(
        self, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        # Pickle calls the class with `args`, so these are all of them and in this order.
        super().__init__(message, param, retry_after_s)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> ErrorResponse:
        """The JSON body that reports this error to a client."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class TaskArgsInvalid(TaskError):
    """The task breaks the contract; `param` is the path of the first field that does."""

    http_status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnknownParameter(TaskArgsInvalid):
    """There is no such field; the message has the nearest one."""

    code = "unknown_parameter"


class MissingParameter(TaskArgsInvalid):
    """A field that is required is absent."""

    code = "missing_required_parameter"


class InvalidType(TaskArgsInvalid):
    """The value is of another JSON type than the field's."""

    code = "invalid_type"


class UnsupportedParameter(TaskArgsInvalid):
    """A field of other servers' interfaces that would change the answer and has no effect here."""

    code = "unsupported_parameter"


class ImageInvalid(TaskArgsInvalid):
    """An image is not base64, is of no known format, or is damaged."""

    code = "invalid_image"


class ContextLengthExceeded(TaskArgsInvalid):
    """The prompt, or the prompt and the answer that the task asks for, are longer than the model's
    context, or than all of the engine's memory for keys and values.
    """

    code = "context_length_exceeded"


class ModelInvalid(TaskError):
    """The model is unknown, is not configured, or is not of a kind that generates text."""

    http_status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class ModelRevisionInvalid(ModelInvalid):
    """The repository exists and has no such branch, tag or commit."""

    code = "model_revision_not_found"


class ModelGated(ModelInvalid):
    """The hub gives the model only to accounts that have accepted its licence."""

    http_status = 403
    code = "model_gated"


class ModelUnsafe(ModelInvalid):
    """Loading the model's files would run code that the operator has not allowed."""

    code = "model_unsafe"


class ModelCorrupt(ModelInvalid):
    """A file of the model is damaged."""

    code = "model_corrupt"


class ModelFormatUnsupported(ModelInvalid):
    """The model's weights are quantized, or stored, in a way that is not read here."""

    code = "model_format_unsupported"


class ModelNotDownloaded(TaskError):
    """The model's files are not on this machine, and it may not or cannot download them."""

    http_status = 404
    type = "invalid_request_error"
    code = "model_not_downloaded"


class ModelIncomplete(ModelNotDownloaded):
    """Some of the model's files are here and others are missing."""

    code = "model_incomplete"


class ModelDownloadError(TaskError):
    """The hub did not deliver the model."""

    http_status = 502
    code = "model_download_failed"


class ImageDownloadError(TaskError):
    """The host of an image's address did not deliver it, or not in time."""

    http_status = 502
    code = "failed_to_download_image"


class OutOfMemory(TaskError):
    """The task, or the model, does not fit into this machine's memory."""

    http_status = 507
    code = "out_of_memory"


class TaskExecutionError(TaskError):
    """The model failed while it ran the task."""

    http_status = 500
    code = "server_error"


class EngineStopped(TaskExecutionError):
    """The process, the device or the machine that ran the task is gone. The task did not fail."""

    http_status = 503
    type = "service_unavailable_error"
    code = "engine_stopped"


class ReplayDiffers(TaskExecutionError):
    """The task was run again after a loss, and its answer does not begin as the one already sent.

    Its stream ends with this error and is never continued with another answer's text.
    """

    code = "replay_differs"


class Overloaded(TaskError):
    """There is no room for the task now; there will be after `retry_after_s` seconds."""

    http_status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"


class Cancelled(TaskError):
    """The client disconnected before the task was done."""

    http_status = 499
    type = "invalid_request_error"
    code = "cancelled"


class InvalidApiKey(TaskError):
    """The server wants a key. The one that was sent is not valid, and is never repeated here."""

    http_status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class RateLimited(TaskError):
    """This key has too many requests open, or sends them too fast."""

    http_status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class BodyTimeout(TaskError):
    """The request's body did not arrive in time. The server closes the connection."""

    http_status = 408
    type = "invalid_request_error"
    code = "body_timeout"


class RequestTooLarge(TaskError):
    """The request's body is larger than the server reads."""

    http_status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RequestTimeout(TaskError):
    """The task took longer than the server waits for one."""

    http_status = 504
    code = "request_timeout"
