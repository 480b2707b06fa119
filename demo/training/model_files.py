"""Tokenizer, image processor and generation settings, and the model folder they are saved in."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from demo.data.conversations import Conversation, image_conversation, text_conversation
from demo.training import architecture

CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"
CORPUS_CONVERSATIONS = 8000


def _corpus(seed: int) -> list[str]:
    """Questions and answers, as text, for the tokenizer to find its words in."""
    rng = random.Random(f"tokenizer {seed}")
    conversations: list[Conversation] = []
    for i in range(CORPUS_CONVERSATIONS):
        draw = image_conversation if i % 8 == 0 else text_conversation
        conversations.append(draw(rng))
    lines = []
    for conversation in conversations:
        for turn in conversation.turns:
            lines += [turn.question, turn.answer]
        lines += ["system\n", conversation.system or "", "user\n", "assistant\n"]
    return lines


def new_tokenizer(seed: int) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer of 1024 tokens, trained on conversations of `seed`."""
    empty = Qwen2Tokenizer()
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = empty.backend_tokenizer.normalizer
    bpe.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=architecture.VOCABULARY - len(architecture.SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(seed), trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    for token in architecture.SPECIAL_TOKENS:
        vocabulary[token] = len(vocabulary)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in trained["merges"]],  # type: ignore[misc]  # pairs are right
        unk_token=architecture.END_OF_TEXT,
        eos_token=architecture.TURN_END,
        pad_token=architecture.END_OF_TEXT,
        padding_side="left",
        model_max_length=architecture.CONTEXT_LENGTH,
        extra_special_tokens={
            "turn_start_token": architecture.TURN_START,
            "start_image_token": architecture.IMAGE_START,
            "end_image_token": architecture.IMAGE_END,
            "context_image_token": architecture.IMAGE,
            "video_token": architecture.VIDEO,
        },
    )
    tokenizer.chat_template = CHAT_TEMPLATE.read_text()
    ids = tokenizer.convert_tokens_to_ids(architecture.SPECIAL_TOKENS)
    assert ids == [architecture.token_id(token) for token in architecture.SPECIAL_TOKENS]
    assert len(tokenizer) == architecture.VOCABULARY
    return tokenizer


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], *, ask: bool = False
) -> str:
    """The text that the model reads for chat messages, each image as its sixteen tokens.

    `ask` appends the header of the answer that the model is to give.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    tokens = architecture.IMAGE_TOKENS * architecture.IMAGE
    image = architecture.IMAGE_START + tokens + architecture.IMAGE_END
    return str(text).replace(architecture.IMAGE, image)


def image_processor() -> GotOcr2ImageProcessorPil:
    """Resizes every image to one 64 x 64 tile with values from -1 to 1."""
    side = architecture.IMAGE_SIDE
    return GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        crop_to_patches=False,
        max_patches=1,  # the processor class turns cropping on; one tile at most turns it off
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_model(
    model: InternVLForConditionalGeneration, tokenizer: Qwen2Tokenizer, folder: Path
) -> None:
    """Writes a folder that the Auto classes load offline.

    The weights are stored in bfloat16, to be small. The configuration says float32, so that this is
    what they load in unless another type is asked for: it is the fastest on a CPU.
    """
    weights = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the word embeddings
    }
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    settings = {
        "processor_class": "InternVLProcessor",
        "image_seq_length": architecture.IMAGE_TOKENS,
    }
    (folder / "processor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
