"""``adapter_config.json`` of a LoRA adapter, as PEFT writes it.

What PEFT (0.21) can do beyond a plain LoRA is refused by name, and so is what a later one may add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import regex

# How it was trained, or which modules were chosen: the file of weights has the result.
_OF_TRAINING = (
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config"),
    *("qalora_group_size", "ensure_weight_tying", "loftq_config", "eva_config", "corda_config"),
    "lora_ga_config",
)
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_INIT = "init_lora_weights"
_MOST_ALPHA = 1e9
_MATCH_SECONDS = 0.1
# Other ways to initialize change the weights of the model itself.
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
_ABSENT: tuple[Any, ...] = (None, False, "none", [], {})


class AdapterUnsupportedError(ValueError):
    """The adapter is not one that is computed here; the text says why, about "it"."""


@dataclass(frozen=True)
class LoraConfig:
    """What a plain LoRA says of itself.

    Attributes:
        rank: of its matrices.
        alpha: the numerator of their scale.
        rslora: whether the denominator is the root of the rank.
        rank_pattern: other ranks, by regular expressions of modules' names.
        alpha_pattern: other numerators.
    """

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> LoraConfig:
        """Read the fields of the file.

        Raises:
            AdapterUnsupportedError: something else than a plain LoRA, or a field of another type.
        """
        kind = fields.get("peft_type")
        if kind != "LORA":
            raise AdapterUnsupportedError(
                f"its peft_type is {kind!r:.40}, and only 'LORA' is computed"
            )
        if (init := fields.get(_INIT)) not in _PLAIN_INITS:
            raise AdapterUnsupportedError(
                f"its {_INIT} is {init!r:.40}, which changes weights of the model: save it as a "
                "plain LoRA (path_initial_model_for_weight_conversion of PEFT)"
            )
        known = {*_OF_TRAINING, *_READ, _INIT}
        for name in sorted(fields.keys() - known):
            if fields[name] not in _ABSENT:
                raise AdapterUnsupportedError(
                    f"it has {name} ({fields[name]!r:.40}), which is not supported"
                )
        return cls(
            rank=_rank("r", fields.get("r")),
            alpha=_alpha("lora_alpha", fields.get("lora_alpha")),
            rslora=bool(fields.get("use_rslora")),
            rank_pattern=_pattern(fields, "rank_pattern", _rank),
            alpha_pattern=_pattern(fields, "alpha_pattern", _alpha),
        )

    def rank_of(self, module: str) -> int:
        """The rank of the matrices of a module."""
        return int(_of_module(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The number by which their product is multiplied."""
        rank = self.rank_of(module)
        alpha = _of_module(self.alpha_pattern, module, self.alpha)
        return float(alpha / (math.sqrt(rank) if self.rslora else rank))


def _rank(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AdapterUnsupportedError(f"its {name} is {value!r:.40} and not a rank")
    return value


def _alpha(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise AdapterUnsupportedError(f"its {name} is {value!r:.40} and not a number")
    if not abs(value) < _MOST_ALPHA:  # true for NaN
        raise AdapterUnsupportedError(f"its {name} is {value!r:.40}; at most {_MOST_ALPHA:g}")
    return float(value)


def _pattern(
    fields: Mapping[str, Any], name: str, checked: Callable[[str, Any], Any]
) -> dict[str, Any]:
    pattern = fields.get(name) or {}
    if not isinstance(pattern, dict):
        raise AdapterUnsupportedError(f"its {name} is no object")
    for key, value in pattern.items():
        checked(f"{name} of {key!r:.80}", value)
        try:
            regex.compile(_ending(key))
        except (regex.error, OverflowError) as error:
            raise AdapterUnsupportedError(f"its {name} has {key!r:.80}: {error}") from None
    return pattern


def _of_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first expression that matches the end of a name, as PEFT does it."""
    for key, value in pattern.items():
        try:
            if regex.match(_ending(key), module, timeout=_MATCH_SECONDS):
                return value
        except TimeoutError:
            raise AdapterUnsupportedError(
                f"its pattern {key!r:.80} takes longer than {_MATCH_SECONDS} s to compare with "
                f"{module!r:.80}: write it without repetitions inside repetitions"
            ) from None
    return default


def _ending(key: str) -> str:
    return rf"(.*\.)?({key})$"
