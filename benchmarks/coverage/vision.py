"""The vision-language architectures: tiny models of the tests, and what becomes of the others.

A conversation with two images, greedy and sampled, alone and among eight others, is compared with
the family's own processor and `generate`.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import closing
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from benchmarks.coverage.rows import Row
from benchmarks.harness.engine_api import Engine, EngineConfig
from engine.loading.families.family import family_of
from schema.errors import TaskError
from tests.engine.models.tiny_models import save_tiny_model
from tests.engine.models.tiny_vision_models import (
    FURTHER_KINDS,
    VISION_KINDS,
    model_type,
    save_tiny_vision_model,
)
from tests.engine.vision.vision_oracle import CONVERSATIONS, SETTINGS, Oracle, task, texts

_TWO, _ONE = CONVERSATIONS["two images"], CONVERSATIONS["one image"]
_SETTINGS = (SETTINGS["greedy"], SETTINGS["sample"])
_OTHERS = 8
_MOST = 500  # characters of a reason

_ENCODER_DECODER = "it is an encoder with a decoder, whose layers attend to the encoder's output"
_CROSS = "its text attends to images in layers of its own, and has no image tokens"
_NO_PROCESSOR = "transformers has no processor of images for it"
_TEXT_AROUND = (
    "its processor writes the text around an image by what stands beside it in the prompt"
)
_TIMM = "its vision tower is of the library timm, which installs torchvision"
_QUERIES = "a transformer of queries between tower and text, and no chat: captions and questions"
_IMAGE_WORDS = "images are words of the vocabulary, which a quantizing tower chooses"
_NOT_CHAT = "it does not write text about images in conversations"
_NO_RECORD = "no record yet: its processor or its merge of features needs more than the others'"
_TORCHVISION = "its image processor is torchvision's only, and no record was tried"
REASONS: dict[str, str] = {
    "aria": "its processor counts the tiles of all images together",
    "blip": _QUERIES,
    "blip-2": _QUERIES,
    "chameleon": _IMAGE_WORDS,
    "cosmos3_omni": _NOT_CHAT,
    "diffusion_gemma": "it writes blocks of tokens by diffusion",
    "emu3": _IMAGE_WORDS,
    "evolla": "it reads proteins, not images",
    "fast_vlm": _TIMM,
    "florence2": _ENCODER_DECODER,
    "fuyu": "patches of images are projected without a tower, by indices in the prompt",
    "gemma3n": _TIMM,
    "gemma4_unified": _TORCHVISION,
    "git": _CROSS,
    "idefics": _CROSS,
    "idefics2": _TEXT_AROUND,
    "inkling2": _TORCHVISION,
    "inkling_mm_model": _TORCHVISION,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": "places of images are a mask beside the tokens",
    "kosmos-2.5": "places of images are a mask beside the tokens",
    "llama4": "its projector is not part of its image features",
    "minicpm_ocr": _TORCHVISION,
    "minicpmv4_6": "its processor numbers the images of a prompt, and needs that of videos",
    "minicpmv4_7": "its processor numbers the images of a prompt, and needs that of videos",
    "minimax_m3_vl": _TORCHVISION,
    "mistral4": "a text model that is listed with those that see",
    "mllama": _CROSS,
    "muse_glimmer": _TORCHVISION,
    "muse_spark": _TORCHVISION,
    "nemotron_h_omni": _TORCHVISION,
    "perception_lm": _TORCHVISION,
    "pi0": "it writes actions of robots",
    "pix2struct": _ENCODER_DECODER,
    "pp_chart2table": "its tasks are charts, without a conversation",
    "pp_formulanet": _ENCODER_DECODER,
    "qwen4_exp": "a recurrent state of another kind beside keys and values, and no record yet",
    "shieldgemma2": "it classifies images",
    "step3p7": _TORCHVISION,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "unlimited_ocr": _TORCHVISION,
    "video_llava": _NO_PROCESSOR,
    "vision-encoder-decoder": _ENCODER_DECODER,
}
"""Why there is no record of an architecture (`engine.loading.families.family`)."""


def architectures() -> list[str]:
    """All model types that transformers lists as image-text-to-text."""
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def rows() -> list[Row]:
    """A row for each architecture."""
    return [row(each) for each in architectures()]


def row(architecture: str) -> Row:
    """What becomes of an architecture. Never raises.

    Of an architecture with several tiny models the worst that is not batched is told.
    """
    if family_of(architecture) is None:
        return Row(architecture, "refused", REASONS.get(architecture, _NO_RECORD))
    found = [_of_kind(architecture, kind) for kind in _kinds(architecture)]
    return next((each for each in found if each.outcome != "batched"), found[0])


def _kinds(architecture: str) -> list[str]:
    if architecture == "internvl":
        return ["internvl"]
    return [kind for kind in (*VISION_KINDS, *FURTHER_KINDS) if model_type(kind) == architecture]


def _of_kind(architecture: str, kind: str) -> Row:
    with tempfile.TemporaryDirectory(prefix="coverage-") as name:
        directory = Path(name)
        try:
            if kind == "internvl":
                save_tiny_model("internvl", directory)
            else:
                save_tiny_vision_model(kind, directory)  # type: ignore[arg-type]  # one of them
            own = Oracle(directory)
            wanted = [own.answers(_TWO, settings) for settings in _SETTINGS]
        except Exception as error:  # noqa: BLE001 - whatever transformers says of it
            return Row(architecture, "not made", _told(error))
        try:
            return _compared(architecture, directory, wanted)
        except TaskError as error:
            return Row(architecture, "crashed", _told(error))


def _compared(architecture: str, directory: Path, wanted: list[list[str]]) -> Row:
    config = EngineConfig(
        model=str(directory), dtype="float32", threads=1, prefill_chunk=8, page_size=8
    )
    try:
        engine = Engine(config)
    except TaskError as error:
        return Row(architecture, "refused", _told(error))
    with closing(engine):
        asked = [task(_TWO, settings) for settings in _SETTINGS]
        if [texts(engine.run_blocking(one)) for one in asked] != wanted:
            return Row(architecture, "different", "alone")
        if asyncio.run(_among_others(engine)) != wanted:
            return Row(architecture, "different", "among others")
        card = engine.card()
    if card["continuous_batching"]:
        return Row(architecture, "batched", "")
    return Row(architecture, "alone", " ".join(str(card["fallback_reason"]).split())[:_MOST])


async def _among_others(engine: Engine) -> list[list[str]]:
    asked = [task(_TWO, settings) for settings in _SETTINGS]
    others = [task(_ONE, _SETTINGS[number % 2]) for number in range(_OTHERS)]
    answers = await asyncio.gather(*map(engine.run, [*asked, *others]))
    return [texts(answer) for answer in answers[: len(asked)]]


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MOST]
