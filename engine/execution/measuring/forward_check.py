"""The forward check: does the packed, paged forward compute what the model's own forward does?

Both run at load on the same random tokens, and are compared stage by stage: the input of every
decoder layer, its queries, keys and values (which contain the positions), its attention, the
logits. Each stage of the packed forward is given what the model's own had there, so what is
compared is the rounding of a single stage. A wrong mask, position, order of keys, window or scale
changes a stage by its own size. Differences of whole forwards say less: rounding grows from layer
to layer, and in quantized ones to the size of an error, because an activation that lies between two
steps of eight bits is rounded to either of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from engine.execution.attention.adapters import own_attention
from engine.execution.attention.interface import Attend, AttentionForm, LayerCalls
from engine.execution.kv_cache import FillPages
from engine.execution.model_runner import Forward, ModelRunner, plain_attention
from engine.loading.description import decoder_layers
from engine.loading.loaded_model import LoadedModel
from engine.requests.request import RecurrentState, ScheduledTokens
from schema.errors import ModelInvalid

CHECKED_TOKENS = 25
"""A prompt and one decoded token: small next to any model's context, and longer than a page."""

_PLAIN = "eager"  # what transformers calls attention in plain operations
_CUTS = (0, 13, CHECKED_TOKENS - 1, CHECKED_TOKENS)  # two chunks of the prompt, one decode step
_NARROW = 5  # tokens of a window that the check is long enough to show

# The largest differences that are rounding, relative to the vector that differs. Seen on real
# weights: 2e-6, 1e-3 and 6e-3 in attention. Where all keys weigh the same, one too many or too few
# of 25 is 0.04, even one that is zero; an error of a position is 0.3 and more.
_IN_ATTENTION = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2.5e-2}
# Between attentions are linear layers. Quantized ones round their input to 8 bits, or to half
# precision, whatever the dtype is: one rounding before that is 0.1 after it.
_BETWEEN = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_BETWEEN_QUANTIZED = 0.25


def forward_problem(runner: ModelRunner, *, vocab_size: int) -> str | None:
    """What the packed forward computes differently from the model's own; None if nothing."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (CHECKED_TOKENS,), generator=generator).tolist()
    found = runner.ranks.gather(CompareForwards(tuple(tokens)), runner)
    return next((problem for problem in found if problem is not None), None)


@dataclass(frozen=True)
class CompareForwards:
    """See `forward_problem`; on one rank, whose part of the heads it sees."""

    token_ids: tuple[int, ...]

    @torch.inference_mode()
    def run(self, runner: ModelRunner) -> str | None:
        """The first difference on this rank."""
        tokens = torch.tensor(self.token_ids, device=runner.device)
        if runner.loaded.image_token_id is not None:  # an image would be expected
            tokens[tokens == runner.loaded.image_token_id] = 0
        own = _own_stages(runner.loaded, tokens)
        # Not in the order of the sequence, so that the order of pages shows.
        pages = list(range(runner.cache.pages_for(len(tokens))))[::-1]
        FillPages(tuple(pages), seed=0).run(runner.cache)  # so that what is not written shows
        state = RecurrentState()
        problems: list[str | None] = []  # of all forwards, because all ranks run all of them
        for start, stop in pairwise(_CUTS):
            scheduled = [ScheduledTokens(start, stop - start, pages, state=state)]
            rows = list(range(stop - start))
            decode = start > 0 and len(rows) == 1
            forward = Forward(tokens[start:stop], scheduled, len(rows), rows, len(rows), decode)
            problems.append(_packed_problem(runner, forward, own))
            if decode and runner.replays_decode:
                problems.append(_replay_problem(runner, forward))
        runner.states.release(state)
        return next((problem for problem in problems if problem is not None), None)


@dataclass(frozen=True)
class _Stage:
    """A point of a forward that is compared; every tensor has its tokens in the last but one axis.

    Attributes:
        name: of the point, for messages.
        values: what arrives there, by its name.
        output: of attention [heads, tokens, size]; None at other points.
        even_output: of attention where all keys weigh the same, because the queries are zero.
    """

    name: str
    values: dict[str, torch.Tensor]
    output: torch.Tensor | None = None
    even_output: torch.Tensor | None = None


@dataclass
class _Recorder:
    """Notes the stages of the model's own forward, whose attention is ``implementation``."""

    implementation: str
    stages: list[_Stage] = field(default_factory=list)
    calls: LayerCalls = field(default_factory=LayerCalls)

    def enter_layer(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """The input of a decoder layer, which stays as it is."""
        self.stages.append(_Stage(f"layer {number}", {"the input": hidden.clone()}))
        return hidden

    def attended(
        self, layer: Any, values: dict[str, torch.Tensor], outputs: Sequence[torch.Tensor]
    ) -> None:
        """Attention [1, heads, tokens, size] and its two outputs [1, tokens, heads, size]."""
        kept = {name: part[0].clone() for name, part in values.items()}
        output, even = (each[0].transpose(0, 1).clone() for each in outputs)
        self.stages.append(_Stage(f"layer {layer}", kept, output, even))


@dataclass
class _Comparison:
    """Follows a packed forward of some tokens through the stages of the model's own.

    What it returns at each stage is the model's own. Once there is a ``problem`` the rest does not
    matter, but is computed, because ranks of a split model compute it together. ``between`` is the
    bound between attentions.
    """

    batch: Attend
    stages: Iterator[_Stage]
    start: int
    stop: int
    between: float
    problem: str | None = None

    def enter_layer(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """The input of a decoder layer."""
        (own,), _ = self._arrive(f"layer {number}", {"the input": hidden})
        return own

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        form: AttentionForm,
    ) -> torch.Tensor:
        """See `Attend`."""
        parts = {"queries": query, "keys": key, "values": value}
        (query, key, value), stage = self._arrive(f"layer {layer}", parts)
        attend = self.batch.attend

        def attended(query: torch.Tensor, form: AttentionForm) -> torch.Tensor:
            return attend(layer, query, key, value, form).transpose(0, 1)

        output = attended(query, form)
        if stage is None or stage.output is None or stage.even_output is None:
            return output.transpose(0, 1)
        own = self._rows(stage.output)
        bound = _IN_ATTENTION[key.dtype]
        self._compare(f"attention of {stage.name}", output, own, bound)
        even = torch.zeros_like(query)
        seen = self._rows(stage.even_output)
        self._compare(f"keys seen in {stage.name}", attended(even, form), seen, bound)
        if form.sliding_window is not None and form.sliding_window > _NARROW:
            firsts = [max(token + 1 - _NARROW, 0) for token in range(self.start, self.stop)]
            wanted = _means(stage.values["values"], firsts, self.start, len(query))
            narrow = attended(even, replace(form, sliding_window=_NARROW, sinks=None))
            self._compare(f"the window of {stage.name}", narrow, wanted, bound)
        if form.chunk is not None and form.chunk > _NARROW:
            firsts = [token - token % _NARROW for token in range(self.start, self.stop)]
            wanted = _means(stage.values["values"], firsts, self.start, len(query))
            narrow = attended(even, replace(form, chunk=_NARROW, sinks=None))
            self._compare(f"the chunks of {stage.name}", narrow, wanted, bound)
        return own.transpose(0, 1).contiguous()

    def finish(self, logits: torch.Tensor) -> None:
        """The logits [tokens, vocab]."""
        self._arrive("the model", {"logits": logits})

    def _arrive(
        self, name: str, values: dict[str, torch.Tensor]
    ) -> tuple[list[torch.Tensor], _Stage | None]:
        """Compare what arrives at a stage; returns the model's own, and its stage."""
        stage = next(self.stages, None)
        if stage is None or (stage.name, [*stage.values]) != (name, [*values]):
            self.problem = self.problem or f"its own forward does not come to {name} there"
            return list(values.values()), None
        for part, value in values.items():
            self._compare(f"{part} of {name}", value, self._rows(stage.values[part]), self.between)
        return [self._rows(own) for own in stage.values.values()], stage

    def _rows(self, own: torch.Tensor) -> torch.Tensor:
        return own[..., self.start : self.stop, :]

    def _compare(self, what: str, ours: torch.Tensor, own: torch.Tensor, bound: float) -> None:
        if self.problem is None:
            self.problem = _difference(what, ours, own, bound)


def _difference(what: str, ours: torch.Tensor, own: torch.Tensor, bound: float) -> str | None:
    """A problem if a vector (of a token, and of a head) differs by more than rounding."""
    ours, own = ours.float(), own.float()
    size = own.norm(dim=-1)
    # Vectors that are almost nothing next to the others are sums that cancel, of rounded terms.
    size = torch.maximum(size, 0.1 * size.median()).clamp_min(torch.finfo(size.dtype).tiny)
    error = float(((ours - own).norm(dim=-1) / size).max())
    if error <= bound:  # false for NaN
        return None
    return f"{what} in a packed forward differ from the model's own by {error:.1e} of their size"


def _packed_problem(runner: ModelRunner, forward: Forward, own: Sequence[_Stage]) -> str | None:
    """Run a packed forward through the stages of the model's own."""
    (tokens,) = forward.scheduled
    followed: list[_Comparison] = []

    def watched(batch: Attend) -> Attend:
        bound = _between(runner.loaded.model)
        followed.append(_Comparison(batch, iter(own), tokens.start, tokens.stop, bound))
        return followed[0]

    def enter_layer(number: int, hidden: torch.Tensor) -> torch.Tensor:
        return followed[0].enter_layer(number, hidden)

    with _at_layers(runner.loaded, enter_layer):
        logits = runner.outputs(forward, watched).logits
    followed[0].finish(logits)
    return followed[0].problem


def _replay_problem(runner: ModelRunner, forward: Forward) -> str | None:
    """Whether a decode step that is replayed from a graph differs from one that is not."""
    direct = runner.outputs(forward, lambda batch: batch).logits.clone()
    replayed = runner.outputs(forward).logits
    return _difference("logits of a graph", replayed, direct, _between(runner.loaded.model))


def _between(model: Any) -> float:
    quantized = getattr(model, "is_quantized", False)
    return _BETWEEN_QUANTIZED if quantized else _BETWEEN[model.dtype]


def _own_stages(loaded: LoadedModel, tokens: torch.Tensor) -> list[_Stage]:
    """The stages of the model's own forward on all tokens."""
    recorder = _Recorder(loaded.own_attention)
    name = f"recorded {loaded.own_attention}"
    AttentionInterface.register(name, partial(_recorded_attention, recorder))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[loaded.own_attention])
    with plain_attention(loaded, name), _at_layers(loaded, recorder.enter_layer):
        output = loaded.model(input_ids=tokens[None], use_cache=False)
    stages = [*recorder.stages, _Stage("the model", {"logits": output.logits[0].float()})]
    recorder.stages.clear()  # transformers keeps the function, and with it the recorder
    return stages


def _recorded_attention(
    recorder: _Recorder,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> Any:
    """transformers' attention interface: the model's own, which is recorded."""
    attention = own_attention(module)
    if attention is None:
        # Where a model has a variant of its own, and `eager`, they are in its module.
        modeling: Any = sys.modules[type(module).__module__]
        attention = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(
            recorder.implementation, getattr(modeling, "eager_attention_forward", None)
        )
    # Plain operations round scores to the dtype: near 50, where soft caps lie, by an eighth in
    # bfloat16, which changes weights by more than an error would. Kernels keep them in float32.
    wide = torch.float32 if recorder.implementation == _PLAIN else query.dtype

    def attended(query: torch.Tensor) -> torch.Tensor:
        states = (each.to(wide) for each in (query, key, value))
        output: torch.Tensor = attention(module, *states, attention_mask, **kwargs)[0]
        return output.to(query.dtype)

    result, even = attended(query), attended(torch.zeros_like(query))
    values = {"queries": query, "keys": key, "values": value}
    recorder.attended(recorder.calls.layer(module), values, (result, even))
    return result, None


def _means(value: torch.Tensor, firsts: Sequence[int], start: int, heads: int) -> torch.Tensor:
    """[heads, tokens, size]: for each token from ``start`` on, the mean of the values from its
    first one to its own.
    """
    value = value.float().repeat_interleave(heads // len(value), dim=0)
    means = [value[:, first : start + n + 1].mean(dim=1) for n, first in enumerate(firsts)]
    return torch.stack(means, dim=1)


@contextmanager
def _at_layers(
    loaded: LoadedModel, enter_layer: Callable[[int, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Within it, each decoder layer takes what ``enter_layer`` returns for its number and input."""

    def hook(number: int) -> Callable[[nn.Module, Any, Any], tuple[Any, Any]]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            if args:
                return (enter_layer(number, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": enter_layer(number, kwargs["hidden_states"])}

        return enter

    layers: Iterable[nn.Module] = ()
    with suppress(ModelInvalid):  # none found: rounding grows from one attention to the next
        _, layers = decoder_layers(loaded.model, "this one")
    handles = [
        layer.register_forward_pre_hook(hook(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
