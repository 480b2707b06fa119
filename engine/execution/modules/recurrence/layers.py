"""transformers' recurrent layers on a packed batch: their functions, in terms of ours.

The layers are gated delta nets (Qwen3-Next, Qwen3.5, OLMo hybrid), Kimi's delta attention, Mamba 1
and 2, and short convolutions (LFM2, Inkling). Their modules have a function for each thing that
goes from a token to the next, by the names below in every architecture. Each gets a twin that
computes from the states of the current forward, and is the own one where no forward of ours runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.nn.functional import silu, softplus
from transformers.activations import ACT2FN

from engine.execution.modules.recurrence.forward import Computing, current
from engine.execution.modules.recurrence.steps import DecayByValue, Steps
from engine.platform.transfer import upload

_TWIN = "_of_states"


def use_states(model: Any) -> None:
    """Let the recurrent layers of a model take their states from the current forward.

    What it changes are functions of transformers' modules, which do as ever in all other forwards.
    """
    names = {type(module).__module__ for module in model.get_decoder().modules()}
    for modeling in (sys.modules[name] for name in names):
        for name, twin in _TWINS.items():
            own = getattr(modeling, name, None)
            if own is not None and not hasattr(own, _TWIN):
                setattr(modeling, name, _either(own, twin))


def _either(own: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        forward = current()
        return own(*args, **kwargs) if forward is None else twin(forward, *args, **kwargs)

    setattr(call, _TWIN, True)
    return call


def _convolve(
    forward: Computing,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> torch.Tensor:
    """A causal convolution of each channel [1, C, T], and an activation."""
    rows = hidden_states[0].t()
    output = forward.convolve(rows, weight, bias)
    if activation is not None:
        output = ACT2FN[activation](output)
    return output.t()[None]


def _delta_rule(
    forward: Computing,
    query: torch.Tensor,  # [1, T, G, K]
    key: torch.Tensor,
    value: torch.Tensor,  # [1, T, H, V]
    g: torch.Tensor,  # [1, T, H]: logarithms of decays
    beta: torch.Tensor,
    *_: Any,
    use_qk_l2norm_in_kernel: bool = False,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """A gated delta net."""
    query, key = query[0].float(), key[0].float()
    if use_qk_l2norm_in_kernel:
        query, key = (x * torch.rsqrt(_squares(x) + 1e-6) for x in (query, key))
    decay = g[0].float().exp()[..., None].expand(*g.shape[1:], key.shape[-1])
    return _delta(forward, query, key, value, decay, beta)


def _kimi_delta_rule(
    forward: Computing,
    query: torch.Tensor,  # [1, T, H, K]
    key: torch.Tensor,
    value: torch.Tensor,  # [1, T, H, V]
    g: torch.Tensor,  # [1, T, H, K]
    beta: torch.Tensor,  # [1, T, H]
    *_: Any,
    use_qk_l2norm_in_kernel: bool = False,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """Kimi's delta attention: a decay for each channel of the keys."""
    query, key = query[0].float(), key[0].float()
    if use_qk_l2norm_in_kernel:
        query, key = (x / torch.sqrt(_squares(x) + 1e-6) for x in (query, key))
    return _delta(forward, query, key, value, g[0].float().exp(), beta)


def _delta(
    forward: Computing,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
) -> tuple[torch.Tensor, None]:
    query = query / query.shape[-1] ** 0.5
    steps = Steps(key, value[0].float(), decay, beta[0].float())
    return forward.scan(query, steps).to(value.dtype)[None], None


def _squares(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors * vectors).sum(dim=-1, keepdim=True)


def _mamba2(
    forward: Computing,
    hidden_states: torch.Tensor,  # [1, T, H, P]
    dt: torch.Tensor,  # [1, T, H]
    A: torch.Tensor,  # [H]  # noqa: N803 - transformers' names
    B: torch.Tensor,  # [1, T, G, N]  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    *_: Any,
    D: torch.Tensor | None = None,  # [H]  # noqa: N803
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **__: Any,
) -> Any:
    """The scan of a Mamba 2; float32 [1, T, H, P]."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = softplus(dt)
    time = _limited(forward, dt[0], dt_limit).float()
    hidden, keys, queries = hidden_states[0].float(), B[0].float(), C[0].float()
    decay = torch.exp(A.float() * time)[..., None].expand(*time.shape, keys.shape[-1])
    output = forward.scan(queries, Steps(keys, hidden * time[..., None], decay, None))
    if D is not None:
        output = output + D[..., None] * hidden
    return (output[None], None) if return_final_states else output[None]


def _limited(forward: Computing, dt: torch.Tensor, limits: tuple[float, float]) -> torch.Tensor:
    """Time steps [T, H] within limits, of prompts: those of decoded tokens have none.

    That is so in transformers, as in the authors' kernels
    (https://github.com/state-spaces/mamba: `selective_state_update` has no limits).
    """
    if limits == (0.0, float("inf")):
        return dt  # which is positive
    of_prompts = [*forward.of_prompts, *[False] * (len(dt) - len(forward.of_prompts))]
    limited = dt.clamp(min=limits[0], max=limits[1])
    return torch.where(upload(of_prompts, dt.device, torch.bool)[:, None], limited, dt)


def _mamba1(
    forward: Computing,
    hidden_states: torch.Tensor,  # [1, I, T]
    dt: torch.Tensor,  # [1, I, T]
    A: torch.Tensor,  # [I, N]  # noqa: N803
    B: torch.Tensor,  # [1, N, T]  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # [I]  # noqa: N803
    z: torch.Tensor | None = None,  # [1, I, T]
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """The scan of a Mamba 1; [1, I, T]."""
    time = dt[0].t().contiguous()
    if delta_bias is not None:
        time = time + delta_bias.to(time.dtype)
    if delta_softplus:
        time = softplus(time)
    time, hidden = time.float(), hidden_states[0].t().float()
    decay = DecayByValue(A.float().t().contiguous()[None], time[:, None])  # one head: I is V
    keys, queries = B[0].t()[:, None].float(), C[0].t()[:, None].float()
    output = forward.scan(queries, Steps(keys, (hidden * time)[:, None], decay, None))[:, 0]
    if D is not None:
        output = output + hidden * D
    if z is not None:
        output = output * silu(z[0].t().contiguous())
    output = output.t()[None]
    return (output, None) if return_last_state else output


_TWINS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _kimi_delta_rule,
    "mamba2_chunk_scan": _mamba2,
    "mamba_selective_scan": _mamba1,
}
