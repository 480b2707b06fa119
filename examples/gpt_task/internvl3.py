"""InternVL3 with gpt-task's `run_task`, in this process: the answer is printed while it grows.

.venv/bin/python examples/gpt_task/internvl3.py
.venv/bin/python examples/gpt_task/internvl3.py --quantize-bits 4 --image photo.jpg "What is this?"
"""

import argparse
import base64
from pathlib import Path

from gpt_task.inference import run_task
from gpt_task.models import GPTTaskStreamResponse

IMAGES = Path(__file__).resolve().parents[2] / "demo" / "images"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("question", nargs="?", default="What is in these images?")
parser.add_argument("--image", type=Path, action="append", help="may be given several times")
parser.add_argument("--model", default="OpenGVLab/InternVL3-1B", help="a hub id or a directory")
parser.add_argument("--dtype", default="auto", help="float16, bfloat16, float32 or auto")
parser.add_argument("--quantize-bits", type=int, choices=[4, 8], help="INT4 or INT8 weights")
parser.add_argument("--max-new-tokens", type=int, default=256)
options = parser.parse_args()


def show(chunk: GPTTaskStreamResponse) -> None:
    """Print what is new."""
    choice = chunk["choices"][0]
    print(choice["delta"].get("content", ""), end="", flush=True)
    if choice["finish_reason"] is not None:
        print(f"\n({choice['finish_reason']}, {chunk['usage']['total_tokens']} tokens)")


images = [
    {"type": "image", "base64": base64.b64encode(path.read_bytes()).decode()}
    for path in options.image or [IMAGES / "red_circle.png", IMAGES / "blue_star.png"]
]
run_task(
    model=options.model,
    messages=[{"role": "user", "content": [*images, {"type": "text", "text": options.question}]}],
    generation_config={"max_new_tokens": options.max_new_tokens, "do_sample": False},
    seed=42,
    dtype=options.dtype,
    quantize_bits=options.quantize_bits,
    stream_callback=show,
)
