"""Which text architectures of transformers there are."""

from __future__ import annotations

from transformers.models.auto import modeling_auto

# Decoders of speech and music, drafts for other models, and models that hear or see as well.
_NOT_TEXT = {
    *("moshi", "musicgen", "musicgen_melody", "moss_transcribe_diarize", "phi4_multimodal"),
    *("gemma4_assistant", "gemma4_unified_assistant", "trocr"),
}


def decoders() -> list[str]:
    """The model types that write text and are made for that.

    Without encoders and parts of encoder-decoders, which transformers lists too because they can be
    told to be decoders, and without those that take images.
    """
    others = {
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *_NOT_TEXT,
    }
    return sorted(set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - others - {"whisper"})
