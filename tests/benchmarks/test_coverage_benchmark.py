"""The table of architectures, and answers alone and under load, with real models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.coverage import page, underload
from benchmarks.coverage.__main__ import main
from benchmarks.coverage.architectures import decoders
from benchmarks.coverage.rows import Row


def test_one_architecture(tmp_path: Path) -> None:
    main(["--parts", "text", "--only", "mixtral", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "coverage.json").read_text())
    wanted = {"architecture": "mixtral", "outcome": "batched", "reason": ""}
    assert found["rows"] == {"text": [wanted]}


def test_one_that_hangs_is_a_row_and_fails_the_command(tmp_path: Path) -> None:
    arguments = ["--parts", "text", "--only", "llama", "--seconds", "0.1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="llama: crashed"):
        main(arguments)
    (row,) = json.loads((tmp_path / "coverage.json").read_text())["rows"]["text"]
    assert row["outcome"] == "crashed"


def test_names_that_are_no_architectures(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no-such"):
        main(["--parts", "text", "--only", "llama,no-such", "--out", str(tmp_path)])


def test_decoders_are_what_writes_text() -> None:
    names = decoders()
    assert {"llama", "gpt_oss", "mamba", "qwen3_next"} <= {*names}
    assert not {"bert", "bart", "whisper", "llama4", "gemma3"} & {*names}


def test_the_table_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "models.md"
    file.write_text("Before.\n\n<!-- text -->\nold\n<!-- end of text -->\n\nAfter.\n")
    rows = [Row("a", "batched", ""), Row("b", "alone", "x | y"), Row("c", "alone", "x | y")]
    page.replace(file, "text", page.table("text", rows))
    text = file.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old" not in text
    assert "1 of 3 run in the batch" in text
    assert "`b`, `c`: x \\| y" in text
    with pytest.raises(ValueError, match="vision"):
        page.replace(file, "vision", "")


def test_alone_and_under_load(tmp_path: Path) -> None:
    arguments = ["--kinds", "sinks", "--dtypes", "bfloat16", "--tasks", "6", "--threads", "1"]
    underload.main([*arguments, "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "underload.json").read_text())["rows"]
    assert row["batched"]
    assert row["same"] == [6, 6, 6]
