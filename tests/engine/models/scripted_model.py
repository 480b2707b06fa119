"""A model that writes given texts: its next token is a function of the position alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import GPT2Config, GPT2LMHeadModel

from tests.engine.models.tiny_models import byte_tokenizer

CONTEXT = 512


def save_scripted_model(
    directory: Path,
    scripts: dict[int, str],
    *,
    template: str | dict[str, str],
    plain: tuple[str, ...] = (),
    special: tuple[str, ...] = (),
) -> None:
    """Save a model that answers a prompt of so many tokens with the text that stands under it.

    Args:
        directory: where.
        scripts: the texts, under the lengths of the prompts; they must not overlap.
        template: its chat template, or several by name.
        plain: tokens beside bytes and the tests' special tokens.
        special: those of them that are special.
    """
    tokenizer: Any = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special],
        special_tokens=True,
    )
    tokenizer.chat_template = template
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            n_embd=CONTEXT,
            n_layer=1,
            n_head=8,
            n_inner=8,
            n_positions=CONTEXT,
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("transformer.ln_"):
                parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(CONTEXT))
        for start, text in scripts.items():
            tokens = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            for position, token in enumerate(tokens, start - 1):
                assert not model.lm_head.weight[:, position].any(), "scripts overlap"
                model.lm_head.weight[token, position] = 1
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
