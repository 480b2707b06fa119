"""The vision half of the table of architectures."""

from __future__ import annotations

import pytest

from benchmarks.coverage import vision
from engine.loading.families.family import VISION_MODEL_TYPES


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma
def test_rows() -> None:
    assert vision.row("vipllava").outcome == "batched"
    alone = vision.row("molmo2")
    assert (alone.outcome, "later tokens" in alone.reason) == ("alone", True)
    assert vision.row("mllama").outcome == "refused"


def test_no_reason_is_given_for_what_runs() -> None:
    assert {*vision.REASONS} <= {*vision.architectures()}
    assert {*VISION_MODEL_TYPES} <= {*vision.architectures()}
    assert not {*vision.REASONS} & {*VISION_MODEL_TYPES}
