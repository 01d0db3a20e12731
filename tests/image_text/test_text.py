"""Reports as tokens: cleaning, masked grade words, hashes, other scripts, lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from image_text.text import FIRST_WORD, MASK, PAD, START, cleaned, encode, masked, read_grade_words, tokenize
from knee.errors import UserError


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<div class='x'>Joint<br/>space</div>", "Joint space"),
        ("a &lt; b &amp; c", "a < b & c"),
        ("width < 3 mm and > 1 mm", "width < 3 mm and > 1 mm"),
        ("<!-- hidden -->shown", "shown"),
        ("  \n\t ", ""),
        ("ﬁne cafe\u0301", "fine café"),
        ("private \ue000 sign", "private sign"),
    ],
)
def test_cleaning(text: str, plain: str) -> None:
    assert cleaned(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "KL 3", "KL grade 2", "K/L grade II", "Kellgren-Lawrence 3", "Kellgren and Lawrence grade 4", "Kellgren–Lawrence: 1",
        "grade III", "GRADE 2", "moderate osteoarthritis", "severe medial OA", "mild to moderate osteoarthritis", "KL2-3",
        "no osteoarthritis", "Pfirrmann grade 4", "stage 3", "grade 3 changes with a tear", "grade II-III",
    ],
)  # fmt: skip
def test_words_that_name_the_grade_are_masked(text: str) -> None:
    found, count = masked(f"Effusion, {text}, no fracture.", read_grade_words())
    assert count >= 1
    assert not any(character.isdigit() for character in found)
    tokens = tokenize(found, buckets=1 << 20)
    assert MASK in tokens
    assert tokens[-4:] == tokenize(", no fracture.", buckets=1 << 20)[1:]


@pytest.mark.parametrize(
    "text",
    [
        "mild narrowing", "a large osteophyte", "4 mm joint space", "no fracture", "kl", "upgrade 3",
        "Grade I spondylolisthesis of L5", "Spondylolisthesis grade 1", "grade 2 meniscal tear", "MCL sprain, grade 2",
        "Grade II spondylolithesis",
    ],
)  # fmt: skip
def test_findings_are_not_masked(text: str) -> None:
    assert masked(text, read_grade_words()) == (text, 0)


def test_a_tokens_number_is_a_hash_of_the_word() -> None:
    one, two = tokenize("Mild narrowing", buckets=4096), tokenize("NARROWING, mild", buckets=4096)
    assert one[0] == two[0] == START
    assert one[1] == two[3]
    assert one[2] == two[1]
    assert all(FIRST_WORD <= token < FIRST_WORD + 4096 for token in one[1:])
    assert tokenize("3.5 mm", buckets=4096)[1] != tokenize("3.4 mm", buckets=4096)[1]


def test_other_scripts_have_tokens_too() -> None:
    assert len(tokenize("膝関節 狭小化", buckets=4096)) == 1 + 6
    assert len(tokenize("сужение щели", buckets=4096)) == 1 + 2


def test_encoding_pads_cuts_and_leaves_an_empty_report_empty() -> None:
    tokens, cut = encode(["one two three four", "", "one"], buckets=64, length=3)
    assert tokens.shape == (3, 3)
    assert tokens.dtype == np.int32
    assert cut == 1
    assert (tokens[1] == PAD).all()
    assert tokens[2, 0] == START
    assert tokens[2, 2] == PAD
    assert tokens[0, 1] == tokens[2, 1]


def test_a_report_of_100_000_words_is_cut() -> None:
    tokens, cut = encode(["word " * 100_000], buckets=64, length=8)
    assert cut == 1
    assert (tokens[0, 1:] == tokens[0, 1]).all()


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("- Gonarthrose [0-4]\n", encoding="utf-8")
    assert masked("gonarthrose 3 links", read_grade_words(str(path)))[1] == 1


@pytest.mark.parametrize("content", ["a: b", "- '['", "- 3", "[", None])
def test_a_bad_list_of_grade_words(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "words.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"text\.grade_words: .*words\.yaml is not a YAML list"):
        read_grade_words(str(path))
