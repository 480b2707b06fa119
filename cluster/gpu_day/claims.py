"""The claims of docs/gpu.md, the most important first."""

from __future__ import annotations

from cluster.gpu_day.claim import Claim

_ANSWERS = "cluster.gpu_day.answers"
_KERNELS = "cluster.gpu_day.kernels"
_SPEED = "cluster.gpu_day.speed"

CLAIMS = (
    Claim(
        "kernels",
        "INT4, INT8, attention of one sequence, the kernels in Triton and `varlen_attn` agree with "
        "plain arithmetic",
        f"{_KERNELS}:agree",
        60,
    ),
    Claim(
        "bf16",
        "16 tasks of all settings, prompts of several chunks: the same bytes alone, at once and "
        "after a restart, in bfloat16; the card says which attention and batch sizes",
        f"{_ANSWERS}:bfloat16",
        120,
    ),
    Claim(
        "generate",
        "In float32 tokens are those of `generate`, but at near ties",
        f"{_ANSWERS}:as_generate",
        90,
    ),
    Claim(
        "graphs",
        "Decode steps are captured as CUDA graphs up to 64 rows, bitsandbytes layers too",
        f"{_ANSWERS}:decode_graphs",
        120,
    ),
    Claim(
        "launches",
        "A launch never waits for the device",
        f"{_ANSWERS}:launches_do_not_wait",
        60,
    ),
    Claim(
        "decode-0.5b",
        "70 % of the memory-bandwidth floor at 1, 16 and 64 rows, 0.5B geometry, bfloat16",
        f"{_SPEED}:decode_half_billion",
        90,
    ),
    Claim("fp16", "The same bytes in float16", f"{_ANSWERS}:float16", 60),
    Claim("nf4", "The same bytes with NF4 weights", f"{_ANSWERS}:nf4", 60),
    Claim("int8", "The same bytes with INT8 weights", f"{_ANSWERS}:int8", 60),
    Claim(
        "images",
        "The same bytes where tasks have images (the demo model, an InternVL)",
        f"{_ANSWERS}:images",
        60,
    ),
    Claim(
        "drafts",
        "Drafts change no byte, and known tokens are read and verified as exact",
        f"{_ANSWERS}:drafts",
        60,
    ),
    Claim("fp32", "The same bytes in float32", f"{_ANSWERS}:float32", 60),
    Claim(
        "memory",
        "A replica takes at most 1 GiB beside weights and KV cache",
        f"{_SPEED}:memory",
        60,
    ),
    Claim(
        "decode-8b",
        "70 % of the memory-bandwidth floor at 1, 16 and 64 rows, 8B geometry, bfloat16",
        f"{_SPEED}:decode_eight_billion",
        180,
    ),
    Claim(
        "layers",
        "Layers over two GPUs: the same bytes alone, at once and after a restart",
        f"{_ANSWERS}:layers_over_two",
        90,
    ),
    Claim(
        "tensors",
        "Tensor by tensor over two GPUs (NCCL): the same bytes alone, at once and after a restart",
        f"{_ANSWERS}:tensors_over_two",
        120,
    ),
)
