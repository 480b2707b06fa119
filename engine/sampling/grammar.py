"""What an answer may be: grammars, compiled by llguidance and followed token by token.

A `GrammarCompiler` compiles a `Grammar` to a `Matcher` for the tokens of one model, and
`grammar_mask` forbids what the matchers do not allow. All of llguidance's limits are counts and
none is a time, so whether a grammar exceeds them depends on the task alone.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from engine.sampling.json_guard import JsonGuard, Prelude, TokenBytes
from engine.sampling.json_schema.rewrite import AnswerSchema, rewritten
from schema.errors import TaskArgsInvalid, TaskExecutionError
from schema.json_values import clipped
from schema.structured import ChoiceForm, JsonSchemaForm, RegexForm, StructuredOutput

# JSON as people and programs write it: a space, or a line break and an indentation. Endless white
# space would be valid JSON too, and models tend to fall into writing it.
_WHITE_SPACE = r" |\n[ \t]{0,20}"
_JSON_OPTIONS: Any = {
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITE_SPACE,
    "lenient": False,  # refuse keywords that constrain and are not supported
    "coerce_one_of": False,
}
# Without \uXXXX, so that each character of a key has one spelling, which a guard can compare.
# Control characters without a short escape cannot be written then.
_GUARDED_OPTIONS: Any = _JSON_OPTIONS | {"json_allowed_escapes": 'nrbtf\\"'}
# llguidance's defaults, except for the states: a hostile pattern could make 250000 of them.
_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
_SILENT = 0
_MAX_REASON_CHARS = 300
_NOTHING_FITS = "no token of the model can come next"

_ERROR_LINE = re.compile(r"^error: (.*)$", re.MULTILINE)
_PLACE = re.compile(r"^at \d+\(\d+\): ")  # a place in a grammar that the client has not seen
_OPTION_HINT = "Enable 'coerce_one_of' option to approximate oneOf with anyOf"


@dataclass(frozen=True)
class Grammar:
    """What an answer may be; make one by one of the class methods.

    Attributes:
        text: the grammar in llguidance's own form: JSON, a list of one or more.
        param: the field of the task that asks for it; errors name it.
        parts: grammars inside it that have fields of their own: if one of them is the reason why
            the whole cannot be used, the error names that field.
        is_guarded: it has JSON that a grammar alone does not keep valid (`JsonGuard`).
        is_marked_up: there is text around the JSON.
        prelude: reasoning before the JSON.
    """

    text: str
    param: str
    parts: tuple[Grammar, ...] = ()
    is_guarded: bool = False
    is_marked_up: bool = False
    prelude: Prelude | None = None

    @classmethod
    def of(cls, form: StructuredOutput) -> Grammar:
        """The grammar of a task's ``structured_output``."""
        if isinstance(form, JsonSchemaForm):
            param = "structured_output.schema"
            return cls.json(rewritten(form.json_schema, param), param)
        if isinstance(form, RegexForm):
            text = LLMatcher.grammar_from_regex(form.pattern)
            return cls(text, "structured_output.pattern")
        if isinstance(form, ChoiceForm):
            choices = " | ".join(json.dumps(choice) for choice in form.choices)
            return cls.lark(f"start: {choices}", "structured_output.choices")
        return cls.json(rewritten({"type": "object"}, "structured_output"), "structured_output")

    @classmethod
    def json(cls, answer: AnswerSchema, param: str) -> Grammar:
        """JSON that is valid under a JSON Schema of at most `MAX_JSON_DEPTH` levels."""
        text = LLMatcher.grammar_from_json_schema(
            json.dumps(answer.schema), overrides=_json_options(answer)
        )
        return cls(text, param, is_guarded=answer.is_open)

    @classmethod
    def lark(
        cls, text: str, param: str, parts: tuple[Grammar, ...] = (), *, is_guarded: bool = False
    ) -> Grammar:
        """A grammar in llguidance's Lark dialect, for our code that builds grammars.

        https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md has the syntax. The rule
        ``start`` is the whole answer, as in this call of a function with markers around it::

            start: "<tool_call>\\n" call "\\n</tool_call>"
            call: %json {...}

        * Input from clients must be quoted by `json.dumps`, which writes a literal, or by
          `lark_json`; nothing protects the parser of this dialect from hostile rules.
        * A literal is text, spelled by any tokens but special ones. A marker that is a special
          token of the model is written without quotes, ``<|tool_call|>`` or by number,
          ``<[151657]>``; it is then the token, and is not in the answer's text.
        * White space in a grammar is not white space in the answer. ``TEXT: /(.|\\n)*/`` is any
          text.

        Args:
            text: the grammar.
            param: the field of the task that asks for it; errors name it.
            parts: see the attribute.
            is_guarded: see the attribute.
        """
        text = json.dumps({"grammars": [{"lark_grammar": text}]})
        return cls(text, param, parts, is_guarded, is_marked_up=True)

    def after(self, lark: str, prelude: Prelude) -> Grammar:
        """This grammar after reasoning.

        ``lark`` is a grammar of what comes before; ``@answer`` in it stands for this one.
        """
        (answer,) = json.loads(self.text)["grammars"]
        both = [{"lark_grammar": lark}, {**answer, "name": "answer"}]
        return replace(self, text=json.dumps({"grammars": both}), prelude=prelude)


def lark_json(answer: AnswerSchema) -> str:
    """JSON that is valid under a schema, as a term of a Lark grammar (`Grammar.lark`)."""
    return "%json " + json.dumps({**answer.schema, "x-guidance": _json_options(answer)})


def _json_options(answer: AnswerSchema) -> Any:
    return _GUARDED_OPTIONS if answer.is_open else _JSON_OPTIONS


class GrammarCompiler:
    """Compiles grammars for the tokens of one model. Thread safe, once it is made."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Iterable[int],
        param: str = "structured_output",
    ) -> None:
        """Read the vocabulary; takes a second or two for a large one.

        Args:
            tokenizer: of the model; must not be used by another thread meanwhile.
            eos_token_ids: any of these ends an answer.
            param: the field of the task that asks for the first grammar; errors name it.

        Raises:
            TaskArgsInvalid: the model's tokens cannot be constrained.
        """
        self._eos = sorted(token for token in eos_token_ids if token < len(tokenizer))
        if not self._eos:
            raise _unfit("it has no token that ends an answer", param)
        try:
            self._tokenizer: LLTokenizer = from_tokenizer(tokenizer, eos_token=self._eos)  # type: ignore[arg-type]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is not an Exception
            raise _unfit(clipped(str(error), _MAX_REASON_CHARS), param) from error
        self._token_bytes: TokenBytes | None = None
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of an answer.

        Raises:
            TaskArgsInvalid: the grammar is not valid, is too large, uses a feature that is not
                supported, or allows no answer that the model's tokens can write.
        """
        inner = LLMatcher(self._tokenizer, grammar.text, log_level=_SILENT, limits=_LIMITS)
        if not inner.is_error():
            inner.compute_bitmask()  # finds out whether there is a first token
        if inner.is_error():
            for part in grammar.parts:
                self.compile(part)
            reason = _reason(inner)
            if reason == _NOTHING_FITS:
                reason = "it allows no answer"
            raise TaskArgsInvalid(f"{grammar.param} cannot be used: {reason}", param=grammar.param)
        guard = None
        if grammar.is_guarded:
            tokens = self._all_bytes()
            guard = JsonGuard(tokens, grammar.prelude, is_marked_up=grammar.is_marked_up)
        eos = frozenset(self._eos)
        return Matcher(inner, self._tokenizer.vocab_size, eos, grammar.param, guard)

    def _all_bytes(self) -> TokenBytes:
        """The bytes of all tokens; read once, when the first grammar needs them."""
        with self._lock:
            if self._token_bytes is None:
                read = self._tokenizer
                self._token_bytes = TokenBytes(
                    [read.decode_bytes([token]) for token in range(read.vocab_size)]
                )
            return self._token_bytes


class Matcher:
    """How far one answer has come in its grammar.

    Attributes:
        done: the answer is complete, by a token that ends it or because nothing can follow.
    """

    def __init__(
        self,
        inner: LLMatcher,
        vocab_size: int,
        eos: frozenset[int],
        param: str,
        guard: JsonGuard | None,
    ) -> None:
        self._guard = guard
        self._inner = inner
        self._vocab_size = vocab_size
        self._eos = eos
        self._param = param
        self.done = False

    @property
    def num_words(self) -> int:
        """Length of a row for `fill`: 32-bit words that hold a bit for each token."""
        return -(-self._vocab_size // 32)

    def fork(self) -> Matcher:
        """A copy at the same place in the grammar; what is costly to make is shared."""
        guard = self._guard.fork() if self._guard is not None else None
        return Matcher(self._inner.deep_copy(), self._vocab_size, self._eos, self._param, guard)

    def fill(self, row: torch.Tensor) -> None:
        """Write which tokens may come next, one bit for each, lowest first. Tokens that end the
        answer are among them exactly when the answer is complete.

        Args:
            row: int32 [num_words], contiguous, on the host.

        Raises:
            TaskExecutionError: the grammar has become too complex here, or no token fits.
        """
        self._inner.unsafe_compute_mask_ptr(row.data_ptr(), row.nbytes)
        self._check()
        if self._guard is not None:
            bits = row.numpy().view(np.uint32)
            self._guard.restrict(bits)
            if not bits.any():
                raise self._stuck(_NOTHING_FITS)

    def accept(self, token_id: int) -> None:
        """Advance by a token that was sampled.

        Raises:
            TaskExecutionError: as for `fill`, or the token was not allowed.
        """
        if token_id in self._eos:
            self.done = True
            return
        self._inner.consume_token(token_id)
        self._check()
        if self._guard is not None:
            self._guard.accept(token_id)
        self.done = self._inner.is_stopped()

    def forced(self) -> list[int]:
        """The tokens that come next in any case, as the text that they spell is mostly tokenized.

        Other tokens may spell the same text, so they are a guess.
        """
        return [] if self.done else list(self._inner.compute_ff_tokens())

    def allowed(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first on, the grammar allows one after the other.

        What a `JsonGuard` takes out is not looked at. Tokens that end the answer do not count.
        """
        inside = takewhile(lambda t: t < self._vocab_size and t not in self._eos, token_ids)
        return int(self._inner.validate_tokens(list(inside)))

    def _check(self) -> None:
        if self._inner.is_error():
            raise self._stuck(_reason(self._inner))

    def _stuck(self, why: str) -> TaskExecutionError:
        return TaskExecutionError(f"{self._param}: the answer cannot go on: {why}", self._param)


def _reason(inner: LLMatcher) -> str:
    """What is wrong, without the parts that are meant for developers of llguidance."""
    if inner.get_error().startswith("NoExtension"):
        return _NOTHING_FITS
    text = inner.get_error()
    if inside := _ERROR_LINE.search(text):  # of a regular expression, below a drawing of it
        text = inside[1]
    text = _PLACE.sub("", text.partition("\n")[0])
    return clipped(text.replace(_OPTION_HINT, "Use anyOf"), _MAX_REASON_CHARS)


def _unfit(why: str, param: str) -> TaskArgsInvalid:
    return TaskArgsInvalid(f"{param} is not supported for this model: {why}", param=param)
