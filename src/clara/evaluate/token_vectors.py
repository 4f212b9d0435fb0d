"""Contextual token vectors of an encoder in a local folder, for BERTScore. Knows transformers, not what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from clara.errors import ModelError
from clara.evaluate.fidelity import TokenVectors
from clara.records import FloatArray


def token_vectors(folder: Path, *, device: str = "cpu") -> TokenVectors:
    """A function from texts to the last hidden states of their tokens, special tokens left out.

    Args:
        folder: an encoder in Hugging Face format, with its tokenizer; safetensors only.
        device: torch device.

    Raises:
        ModelError: there is no such encoder.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{folder} holds no encoder for BERTScore ({reason}): give a folder in HF format") from None

    def vectors(texts: Sequence[str]) -> list[FloatArray]:
        found: list[FloatArray] = []
        for text in texts:
            batch = tokenizer(text, return_tensors="pt", truncation=True, return_special_tokens_mask=True)
            special = batch.pop("special_tokens_mask")[0].bool()
            with torch.inference_mode():
                hidden = model(**batch.to(device)).last_hidden_state[0]
            found.append(hidden[~special].float().cpu().numpy())
        return found

    return vectors
