"""Qwen2.5 with gpt-task's `run_task`, in this process: the answer is printed while it grows.

.venv/bin/python examples/gpt_task/qwen2_5.py
.venv/bin/python examples/gpt_task/qwen2_5.py --quantize-bits 4 "Why is the sky blue?"
"""

import argparse

from gpt_task.inference import run_task
from gpt_task.models import GPTTaskStreamResponse

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("question", nargs="?", default="Write a haiku about a slow snail.")
parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a hub id or a directory")
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


run_task(
    model=options.model,
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": options.question},
    ],
    generation_config={"max_new_tokens": options.max_new_tokens, "temperature": 0.7},
    seed=42,
    dtype=options.dtype,
    quantize_bits=options.quantize_bits,
    stream_callback=show,
)
