"""The model before training: sizes, configuration and initial weights."""

import torch
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2Config,
)

VOCABULARY = 1024  # tokens, special ones included
CONTEXT_LENGTH = 2048  # tokens
IMAGE_SIDE = 64  # pixels; every image is resized to a square of this side
PATCH_SIDE = 8  # pixels
IMAGE_TOKENS = 16  # per image: (64 / 8)^2 patches, four of which make one token
HIDDEN = 128

# Special tokens take the last ids of the vocabulary, in this order.
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE, VIDEO]


def token_id(special: str) -> int:
    """The id of a special token."""
    return VOCABULARY - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index(special)


def configuration() -> InternVLConfig:
    """InternVL with a tiny vision tower and a tiny Qwen2, its word embeddings tied to the head."""
    vision = InternVLVisionConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        attention_bias=True,
        norm_type="layer_norm",
        layer_scale_init_value=1.0,
        initializer_range=0.08,
    )
    text = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=token_id(TURN_END),
        pad_token_id=token_id(END_OF_TEXT),
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=token_id(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )


def new_model(seed: int) -> InternVLForConditionalGeneration:
    """A model with initial weights drawn from `seed`, in float32."""
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(configuration())
    # transformers starts the position embeddings at zero and everything else near it. From there a
    # tower this small learns colours and then stays on a plateau, blind to shapes.
    embeddings = model.model.vision_tower.embeddings
    nn.init.normal_(embeddings.position_embeddings, std=0.5)
    nn.init.normal_(embeddings.cls_token, std=0.02)
    nn.init.normal_(embeddings.patch_embeddings.projection.weight, std=0.1)
    projector = model.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return model


class ImageHead(nn.Module):
    """Reads colour and shape off an image's tokens; it teaches the tower and is then dropped."""

    def __init__(self, colours: int, shapes: int) -> None:
        super().__init__()
        self.colour = nn.Linear(HIDDEN, colours)
        self.shape = nn.Linear(HIDDEN, shapes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[images, IMAGE_TOKENS, HIDDEN] -> logits [images, colours], [images, shapes]."""
        mean = features.mean(dim=1)
        return self.colour(mean), self.shape(mean)
