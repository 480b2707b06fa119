"""The process of one architecture: ``python -m benchmarks.coverage.worker PART ARCHITECTURE``.

Its last line of output is the row, as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.coverage.parts import PARTS


def main() -> None:
    """Compare, and print the row."""
    part, architecture = sys.argv[1:]
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    print(json.dumps(asdict(PARTS[part].row(architecture))), flush=True)


if __name__ == "__main__":
    main()
