"""`python -m serve_app.models` with little to show; test_pool.py has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schema import ModelCorrupt
from serve_app.config.app_args import AppArgs
from serve_app.graph.model_list import listing
from serve_app.models import main, table
from serve_app.status import Sample
from tests.engine.loading.hub import serve_hub

ARGS = AppArgs.model_validate(
    {
        "models": [{"id": "a", "dtype": "float32"}, {"id": "a", "quantize_bits": 4}],
        "pool": {"allow": ["*"], "max_memory_gb": 8.0},
    }
)


def test_models_that_do_not_run_are_listed_too() -> None:
    error: dict[str, Any] = dict(ModelCorrupt("model 'a' is damaged: it is").to_dict())
    statuses = {"Model:a:float32": [{"tasks": {}, **error}], "Model:a:int4": [], "Pool": []}
    entries = listing(ARGS, statuses, {}, created=7)
    assert [(e["id"], e["created"]) for e in entries] == [("a", 7)]
    assert [v["quantize_bits"] for v in entries[0]["variants"]] == [None, 4]
    said = table(Sample({"data": entries}).models)
    assert "a (float32), Model:a:float32\n  cannot load   model 'a' is damaged: it is" in said
    assert "a (auto, INT4), Model:a:int4\n  no replica runs" in said
    assert table([]) == "nothing is configured or loaded"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "http://127.0.0.1:9"], "no list of models: "),
        (["--address", "ftp://127.0.0.1"], "is not an address such as"),
        (["--address", "http://"], "is not an address such as"),
        (["no/such.yaml"], "no list of models: "),
    ],
)
def test_no_answer(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


def test_another_server_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serve_hub() as other:
        assert main(["--address", other.address]) == 1
    assert "answers 404 and is not this server" in capsys.readouterr().err
