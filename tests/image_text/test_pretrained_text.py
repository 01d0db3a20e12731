"""Pretrained text encoders: tokens, states and gradients of a tiny BERT folder, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from image_text.config import ImageTextConfig
from image_text.pretrained_text import PretrainedText, PretrainedVocabulary
from image_text.text import FIRST_WORD, MASK, MASKED, PAD, START
from image_text.train import KIND, build_towers, train_image_text
from knee.engine.run import create_run
from knee.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "joint", "space", "narrow", "large", "spur", ".", "no"]
needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs the extra text")


def bert_folder(folder: Path, words: list[str], *, size: int = 12) -> Path:
    """A tiny BERT with this vocabulary, as save_pretrained writes it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert") / "tiny", WORDS)


@needs_transformers
def test_tokens_keep_the_numbers_of_masks_and_padding(bert: Path) -> None:
    vocabulary = PretrainedVocabulary(str(bert), download=False)
    tokens, cut = vocabulary.encode([f"Narrow joint {MASKED} space", "", "no spur. " * 9], length=8)
    assert tokens[0].tolist() == [START, FIRST_WORD + 7, FIRST_WORD + 5, MASK, FIRST_WORD + 6, FIRST_WORD + 3, PAD, PAD]
    assert (tokens[1] == PAD).all()
    assert cut == 1


@needs_transformers
def test_states_do_not_depend_on_longer_batch_mates(bert: Path) -> None:
    vocabulary = PretrainedVocabulary(str(bert), download=False)
    network = PretrainedText(vocabulary, length=24, fresh=True).eval()
    tokens = torch.from_numpy(vocabulary.encode(["no spur", "", "no spur. " * 5], length=24)[0]).long()
    with torch.no_grad():
        together, alone = network.pooled(tokens), network.pooled(tokens[:1])
    assert together.shape == (3, 16)
    assert together.isfinite().all()
    torch.testing.assert_close(together[:1], alone)
    assert network.guess(together).shape == (3, FIRST_WORD + 12)


@needs_transformers
def test_a_run_trains_it_and_another_vocabulary_is_refused(
    bert: Path, make_config: Callable[..., ImageTextConfig], tmp_path: Path
) -> None:
    config = make_config(**{"text.encoder": str(bert), "fit.steps": 2})
    run = create_run(tmp_path / "run", config, kind=KIND)
    train_image_text(config, run, resume=False)
    saved = run.checkpoints.latest()[0]
    assert saved is not None
    network = build_towers(config, grades=5, fresh=False)
    saved.load_network("student", network)
    start = build_towers(config, grades=5, fresh=True).text.body.state_dict()
    trained = network.text.body.state_dict()
    assert any(not np.array_equal(start[name], trained[name]) for name in start)
    other = bert_folder(tmp_path / "other", [*WORDS[:5], *WORDS[:4:-1]])
    network = build_towers(make_config(**{"text.encoder": str(other)}), grades=5, fresh=False)
    with pytest.raises(UserError, match="another vocabulary than the one that this run was trained with"):
        saved.load_network("student", network)


@needs_transformers
def test_a_tokenizer_of_another_model_and_long_reports(bert: Path, tmp_path: Path) -> None:
    other = bert_folder(tmp_path / "other", [*WORDS, "more"], size=12)
    vocabulary = PretrainedVocabulary(str(other), download=False)
    with pytest.raises(UserError, match="has 13 tokens, its network only 12"):
        PretrainedText(vocabulary, length=24, fresh=True)
    with pytest.raises(UserError, match=r"text\.length is 65; .* reads at most 64 tokens"):
        PretrainedText(PretrainedVocabulary(str(bert), download=False), length=65, fresh=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"a folder needs config\.json"):
        PretrainedVocabulary(str(tmp_path / "empty"), download=False)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    missing = {"transformers"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else real(name, *rest))
    with pytest.raises(UserError, match=r"needs the extra text; install it with pip install 'dcmt-knee\[text\]'"):
        PretrainedVocabulary("some/bert", download=False)
