"""Trains the demo model from scratch: `python -m demo.train`.

Five stages, all scheduled by steps: the vision tower alone, the language model alone in two stages,
then both together in two. The same seed on the same machine and library versions gives the same
weights. A run that was interrupted continues from its last checkpoint when it is started again.
"""

import argparse
from pathlib import Path

import torch
from transformers import InternVLForConditionalGeneration

from demo.data.conversations import COMPARING_MIX, COUNTING_MIX, JOINT_MIX, TEXT_MIX
from demo.data.shapes import COLOURS, SHAPES
from demo.training.architecture import ImageHead, new_model
from demo.training.conversation_stage import ConversationTraining, Plan
from demo.training.model_files import new_tokenizer, save_model
from demo.training.vision_stage import train_vision

SEED = 0
VISION_STEPS = 2600
PLANS = [
    Plan(
        "language",
        steps=1500,
        image_rows=0,
        text_rows=40,
        text_mix=TEXT_MIX,
        peak=2e-3,
        constant=0.7,
        final=1e-3,
        # The published weights were laid out for 900 steps and extended at step 800, when the model
        # had only just found out how to copy words.
        restart=(800, 900),
    ),
    Plan(
        "counting",
        steps=500,
        image_rows=0,
        text_rows=48,
        text_mix=COUNTING_MIX,
        peak=2e-3,
        constant=0.7,
        final=1e-3,
    ),
    Plan(
        "joint",
        steps=700,
        image_rows=24,
        text_rows=28,
        text_mix=JOINT_MIX,
        peak=1e-3,
        constant=0.3,
        final=2e-5,
    ),
    Plan(
        "comparing",
        steps=360,
        image_rows=20,
        text_rows=40,
        text_mix=COMPARING_MIX,
        pairs=0.6,
        peak=1e-3,
        constant=0.4,
        final=2e-5,
    ),
]
CHECKPOINT_EVERY = 100  # steps

HERE = Path(__file__).parent


def _vision_stage(
    model: InternVLForConditionalGeneration, head: ImageHead, steps: int, checkpoint: Path
) -> None:
    """Trains tower, projector and head, or loads what an earlier run has trained."""
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        return
    train_vision(model, head, steps=steps, seed=SEED)
    torch.save({"model": model.state_dict(), "head": head.state_dict()}, checkpoint)


def train(out: Path, checkpoints: Path, scale: float) -> None:
    """All stages, each `scale` times as long as published; leaves a model folder at `out`."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    model = new_model(SEED)
    head = ImageHead(len(COLOURS), len(SHAPES))
    model.train()
    _vision_stage(model, head, round(VISION_STEPS * scale), checkpoints / "vision.pt")

    tokenizer = new_tokenizer(SEED)
    for plan in PLANS:
        training = ConversationTraining(model, head, tokenizer, plan.scaled(scale), SEED)
        file = checkpoints / f"{plan.name}.pt"
        if file.exists():
            training.resume(torch.load(file))

        def save(training: ConversationTraining = training, file: Path = file) -> None:
            torch.save(training.state(), file)
            save_model(model, tokenizer, out)

        training.run(every=CHECKPOINT_EVERY, checkpoint=save)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--checkpoints", type=Path, default=HERE / "checkpoints")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="0.01 for a quick trial")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # The order of summation, and so the last bits of the weights, depend on the thread count.
    torch.set_num_threads(arguments.threads)
    train(arguments.out, arguments.checkpoints, arguments.steps_scale)


if __name__ == "__main__":
    main()
