"""The metadata of a file: written and read alike, and refused where a stranger changed them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dcmt.onnx.card import KEY, Card, read_card
from knee.errors import UserError

VALUES: dict[str, Any] = {
    "kind": "grader", "network": "teacher", "grade_set": "kl", "grades": ["a", "b"], "image_size": 64,
    "percentiles": [0.5, 99.5], "mirror_side": "L", "template": [[0.0, 1.0], [0.5, 0.25]], "modalities": ["CR"],
    "distances": [1.0, 2.0], "farthest": 1.5, "temperature": 1.2, "flip_tta": False, "severest": False,
        "opset": 17, "weights_sha256": "0",
    "step": 3, "license": "CC0", "version": "1",
}  # fmt: skip


def test_what_is_written_is_read() -> None:
    card = Card(**VALUES)
    assert read_card({KEY: card.text()}, "m.onnx") == card
    assert "not for diagnosis" in card.research_use


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 10**9},
        {"image_size": "64"},
        {"image_size": True},
        {"percentiles": [99.5, 0.5]},
        {"percentiles": ["0", "1"]},
        {"mirror_side": "M"},
        {"grades": [1, 2]},
        {"grades": "ab"},
        {"template": [[1.0], [2.0, 3.0]]},
        {"template": [1.0]},
        {"distances": ["x"]},
        {"schema": "other/1"},
        {"kind": None},
        {"more": 1},
        {"modalities": [[]]},
    ],
    ids=str,
)
def test_what_is_not_valid_is_refused(changes: dict[str, Any]) -> None:
    text = json.dumps(json.loads(Card(**VALUES).text()) | changes)
    with pytest.raises(UserError, match=r"m\.onnx: its metadata are not valid"):
        read_card({KEY: text}, "m.onnx")


@pytest.mark.parametrize(
    "text", ["[]", "{", "3", "[" * 100_000, '{"a": NaN}', '"' + "a" * 2_000_000 + '"'], ids=lambda t: t[:5]
)
def test_text_that_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"m\.onnx: its metadata are not valid"):
        read_card({KEY: text}, "m.onnx")


def test_a_file_of_another_program_is_named() -> None:
    with pytest.raises(UserError, match=r"m\.onnx was not written by dcmt export"):
        read_card({}, "m.onnx")
