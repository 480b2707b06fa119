"""The model that all servers of one run serve, in one directory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.worker import in_own_process
from benchmarks.harness.models import GEOMETRIES, save_model
from benchmarks.harness.vision_models import IMAGE_TOKEN, VISION_GEOMETRIES, save_vision_model
from serve_app.config.app_args import REPOSITORY

DEMO = "demo"

# Servers of chat completions want a template. This one leaves a text as it is, so that each letter
# of a random model's prompt stays one token, here as in the other benchmarks. A picture becomes its
# placeholder, whether its block came as chat completions name it or as transformers does.
_PLAIN_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for block in message.content -%}
            {%- if block.type == 'text' -%}
                {{- block.text -}}
            {%- elif block.type in ['image', 'image_url'] -%}
                {{- 'IMAGE_TOKEN\\n' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
""".replace("IMAGE_TOKEN", IMAGE_TOKEN)


@dataclass(frozen=True)
class ServedModel:
    """What is served.

    Attributes:
        source: its directory, or the id of a repository of the hub.
        dtype: of the arithmetic.
        images: whether it sees pictures.
        padded: whether prompts are filled up to their length with random letters.
        told: whether it has to be told to write something long. Random weights need not: the
            answers are always as long as was asked for.
    """

    source: str
    dtype: str
    images: bool
    padded: bool
    told: bool


def real_model(source: str, dtype: str | None, *, images: bool) -> ServedModel:
    """A checkpoint that somebody has trained: a directory, or the id of a repository."""
    return ServedModel(source, dtype or "bfloat16", images=images, padded=True, told=True)


def geometry_names() -> list[str]:
    """What ``--geometry`` may be."""
    return [*GEOMETRIES, *VISION_GEOMETRIES, DEMO]


def make_model(geometry: str, dtype: str | None, directory: Path) -> ServedModel:
    """The demo model, or one with random weights that is saved in a directory.

    Args:
        geometry: one of `geometry_names`.
        dtype: None for float32 with the demo model, and bfloat16 with others.
        directory: where the model is saved; one that an earlier run has left there is used again.
    """
    if geometry == DEMO:
        # A copy, because a server may write beside the weights.
        source = directory / DEMO
        shutil.copytree(REPOSITORY / "demo" / "model", source, dirs_exist_ok=True)
        return ServedModel(str(source), dtype or "float32", images=True, padded=False, told=True)
    dtype = dtype or "bfloat16"
    source = directory / f"{geometry}-{dtype}"
    in_own_process(save_random, geometry, dtype, str(source))
    sees = geometry in VISION_GEOMETRIES
    return ServedModel(str(source), dtype, images=sees, padded=True, told=False)


def save_random(geometry: str, dtype: str, directory: str) -> None:
    """Save a model with random weights and a chat template, unless an earlier call has."""
    save = save_vision_model if geometry in VISION_GEOMETRIES else save_model
    save(geometry, dtype, directory)
    (Path(directory) / "chat_template.jinja").write_text(_PLAIN_TEMPLATE, encoding="utf-8")
