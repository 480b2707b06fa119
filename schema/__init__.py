"""The task contract: tasks, responses, errors, and the JSON Schemas of all of them."""

from typing import TYPE_CHECKING, Any

from schema.answers.response import (
    Choice,
    Delta,
    FinishReason,
    PromptTokenLogprob,
    ResponseMessage,
    StreamChoice,
    StreamChunk,
    TaskResponse,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from schema.errors import (
    BodyTimeout,
    Cancelled,
    EngineStopped,
    ErrorDetail,
    ErrorResponse,
    InvalidApiKey,
    ModelCorrupt,
    ModelDownloadError,
    ModelFormatUnsupported,
    ModelGated,
    ModelIncomplete,
    ModelInvalid,
    ModelNotDownloaded,
    ModelRevisionInvalid,
    ModelUnsafe,
    OutOfMemory,
    Overloaded,
    RateLimited,
    ReplayDiffers,
    RequestTimeout,
    RequestTooLarge,
    TaskArgsInvalid,
    TaskError,
    TaskExecutionError,
)
from schema.generation import DEFAULT_MAX_NEW_TOKENS, DEFAULT_NUM_RETURN_SEQUENCES
from schema.task import (
    Dtype,
    GenerationConfig,
    ImageBlock,
    Message,
    QuantizeBits,
    Task,
    TextBlock,
)

if TYPE_CHECKING:
    from schema.published.schemas import schemas

__all__ = [
    "DEFAULT_MAX_NEW_TOKENS",
    "DEFAULT_NUM_RETURN_SEQUENCES",
    "BodyTimeout",
    "Cancelled",
    "Choice",
    "Delta",
    "Dtype",
    "EngineStopped",
    "ErrorDetail",
    "ErrorResponse",
    "FinishReason",
    "GenerationConfig",
    "ImageBlock",
    "InvalidApiKey",
    "Message",
    "ModelCorrupt",
    "ModelDownloadError",
    "ModelFormatUnsupported",
    "ModelGated",
    "ModelIncomplete",
    "ModelInvalid",
    "ModelNotDownloaded",
    "ModelRevisionInvalid",
    "ModelUnsafe",
    "OutOfMemory",
    "Overloaded",
    "PromptTokenLogprob",
    "QuantizeBits",
    "RateLimited",
    "ReplayDiffers",
    "RequestTimeout",
    "RequestTooLarge",
    "ResponseMessage",
    "StreamChoice",
    "StreamChunk",
    "Task",
    "TaskArgsInvalid",
    "TaskError",
    "TaskExecutionError",
    "TaskResponse",
    "TextBlock",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
    "schemas",
]


def __getattr__(name: str) -> Any:
    """`schemas`, when it is first asked for.

    The requests of all clients' APIs come with it, and most processes of a server need none.
    """
    if name == "schemas":
        from schema.published.schemas import schemas  # noqa: PLC0415

        return schemas
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
