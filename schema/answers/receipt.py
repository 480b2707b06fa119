"""Receipts: what an answer was and how it was computed, signed by the server that computed it.

docs/receipts.md says what each field is computed from. An engine makes an `ExecutionRecord` of what
only it knows; the server makes a `Receipt` of it.
"""

from typing import Annotated, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

from schema.answers.usage import Count, FinishReason, Usage

VERSION: Literal[1] = 1
"""Of the receipt's form. Another one has other fields, or computes one of them otherwise."""

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_TokensDigest = Annotated[
    _Digest,
    Field(
        description="SHA-256, in hexadecimal digits, of the RFC 8785 JSON of the list of the "
        "choice's token ids, a token that ends the answer included."
    ),
]
_Trace = Annotated[
    _Digest | None,
    Field(
        description="The last link of a hash chain over the choice's tokens and the bits of their "
        "logits, in hexadecimal digits. null where none is kept: for a beam search."
    ),
]
_Dtype = Annotated[str, Field(min_length=1, description="In which the model was computed.")]
_QuantizeBits = Annotated[
    int | None, Field(description="Bits of the model's quantized weights; null: not quantized.")
]
_Layout = Annotated[
    str | None, Field(description="How the model was split over devices; null: on a single one.")
]


class ChoiceRecord(TypedDict):
    """What the engine alone knows of a choice: see `ReceiptChoice`."""

    index: int
    token_ids_digest: str
    trace: str | None


class ExecutionRecord(TypedDict):
    """What the engine alone knows of an answer: see `Receipt`."""

    dtype: str
    quantize_bits: int | None
    layout: str | None
    choices: list[ChoiceRecord]


@with_config(extra="forbid", strict=True)
class ReceiptChoice(TypedDict):
    """What a receipt says of a choice."""

    index: Count
    message_digest: Annotated[
        _Digest,
        Field(
            description="SHA-256, in hexadecimal digits, of the RFC 8785 JSON of the choice's "
            "`message`, as the response to a task has it."
        ),
    ]
    token_ids_digest: _TokensDigest
    finish_reason: FinishReason
    trace: _Trace


@with_config(extra="forbid", strict=True)
class Receipt(TypedDict):
    """What was asked and answered, and how the answer was computed, signed.

    It is a function of the request, its seed and the key: the same request gives the same receipt.
    """

    version: Literal[1]
    route: Annotated[
        str, Field(min_length=1, description="The path that was asked, such as /v1/tasks.")
    ]
    request_digest: Annotated[
        _Digest,
        Field(
            description="SHA-256, in hexadecimal digits, of the RFC 8785 JSON of the request's "
            "body, as the client sent it."
        ),
    ]
    model: Annotated[str, Field(min_length=1, description="The model that answered.")]
    system_fingerprint: Annotated[
        str, Field(min_length=1, description="The response's: files, versions, device, dtype.")
    ]
    dtype: _Dtype
    quantize_bits: _QuantizeBits
    layout: _Layout
    seed: Annotated[
        Count, Field(description="Where random numbers started: the request's own, or drawn.")
    ]
    choices: Annotated[list[ReceiptChoice], Field(min_length=1)]
    usage: Usage
    key_id: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{43}$",
            description="Which key has signed: the `kid` of its public half (RFC 7638).",
        ),
    ]
    signature: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{86}$",
            description="Ed25519 (RFC 8032) over the RFC 8785 JSON of the receipt without this "
            "field, in base64url without padding.",
        ),
    ]
