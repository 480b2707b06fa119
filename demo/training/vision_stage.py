"""First stage of training: the vision tower learns to see colours and shapes, without language."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import trange  # type: ignore[import-untyped]
from transformers import InternVLForConditionalGeneration

from demo.data.shapes import COLOURS, HELD_OUT_SEED, SHAPES, Drawing, draw_image
from demo.training.architecture import IMAGE_SIDE, ImageHead

IMAGES_A_STEP = 32
LEARNING_RATE = 8e-4
WARM_UP = 60  # steps
HARDER_ABOVE = 0.72  # shape accuracy above which the images get harder
HARDER_BY = 0.006  # difficulty a step


def pixel_values(images: Sequence[Drawing]) -> torch.Tensor:
    """What the image processor makes of the images: [images, 3, 64, 64], in -1 to 1."""
    resized = [p.image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC) for p in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def image_loss(
    head: ImageHead, features: torch.Tensor, images: Sequence[Drawing]
) -> tuple[torch.Tensor, float]:
    """Loss of the head on [images, IMAGE_TOKENS, HIDDEN] features, and its shape accuracy."""
    colours = torch.tensor([list(COLOURS).index(p.colour) for p in images])
    shapes = torch.tensor([list(SHAPES).index(p.shape) for p in images])
    colour_logits, shape_logits = head(features)
    accuracy = (shape_logits.argmax(-1) == shapes).float().mean().item()
    return cross_entropy(colour_logits, colours) + cross_entropy(shape_logits, shapes), accuracy


def optimizer_for(modules: Sequence[nn.Module], learning_rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases, norms and scales alone."""
    parameters = [p for module in modules for p in module.parameters()]
    unique = list(dict.fromkeys(parameters))  # tied weights once
    groups = [
        {"params": [p for p in unique if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in unique if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def train_vision(
    model: InternVLForConditionalGeneration, head: ImageHead, *, steps: int, seed: int
) -> None:
    """Trains tower, projector and head in place.

    The images start easy and get harder while the head keeps up: on full difficulty from the
    start, the tower would learn colours only. One image in twenty is hard from the beginning.
    """
    rng = random.Random(f"vision {seed}")
    modules = [model.model.vision_tower, model.model.multi_modal_projector, head]
    optimizer = optimizer_for(modules, LEARNING_RATE)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    difficulty, accuracy = 0.0, 0.0
    progress = trange(steps, desc="vision", mininterval=5)
    for step in progress:
        images = [
            draw_image(
                rng.randrange(HELD_OUT_SEED),
                difficulty=1.0 if rng.random() < 0.05 else difficulty,
            )
            for _ in range(IMAGES_A_STEP)
        ]
        features = model.model.get_image_features(pixel_values(images)).pooler_output
        loss, batch_accuracy = image_loss(head, features, images)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        accuracy += 0.05 * (batch_accuracy - accuracy)
        if accuracy > HARDER_ABOVE:
            difficulty = min(1.0, difficulty + HARDER_BY)
        if step % 20 == 0:
            progress.set_postfix(loss=loss.item(), accuracy=accuracy, difficulty=difficulty)
