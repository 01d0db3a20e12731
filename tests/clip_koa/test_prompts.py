"""Prompt files: what is read, and every refusal with its way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from clip_koa.prompts import count_tokens, read_prompts
from knee.errors import Faults, UserError
from knee.grades import load_grade_set

KL = load_grade_set("kl")
CARTILAGE = load_grade_set("cartilage")
TOKENIZER = SimpleTokenizer()


def written(folder: Path, text: str) -> Path:
    path = folder / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(Faults) as caught:
        read_prompts(written(folder, text), CARTILAGE, tokenizer=TOKENIZER)
    return caught.value.faults


@pytest.mark.parametrize("grade_set", [KL, CARTILAGE])
def test_shipped_sets_are_whole_and_fit_clip(grade_set):
    prompts = read_prompts(grade_set.name, grade_set, tokenizer=TOKENIZER)
    assert prompts.count == grade_set.count
    assert all(len(phrases) >= 3 for phrases in prompts.phrases)
    phrases, grades = prompts.flat
    assert len(phrases) == len(set(phrases)) == len(grades)
    assert sorted(set(grades)) == list(range(grade_set.count))
    assert max(count_tokens(TOKENIZER, phrase) for phrase in phrases) <= 77


def test_a_folded_phrase_is_one_line(tmp_path):
    text = "grade_set: cartilage\ngrades:\n  0: [a]\n  1:\n    - >-\n      b\n      c\n  2: [d]\n"
    assert read_prompts(written(tmp_path, text), CARTILAGE).phrases == (("a",), ("b c",), ("d",))


def test_count_tokens_equals_what_the_tokenizer_writes():
    phrase = "a knee radiograph with doubtful osteophytic lipping"
    assert count_tokens(TOKENIZER, phrase) == int((TOKENIZER([phrase]) != 0).sum())


def test_all_faults_come_at_once(tmp_path):
    text = (
        "grade_set: kl\n"  # another grade set
        "grades:\n"
        "  0: [a, ' ', 7]\n"  # an empty phrase, a number
        "  1: [b]\n"
        "  1: [c]\n"  # grade 1 twice
        "  '2': [d]\n"  # a text for a grade; grade 2 is missing
        "  3: [" + "bone " * 90 + "]\n"  # no such grade, too long
        "  4: a phrase\n"  # not a list
        "notes: x\n"
    )
    faults = "\n".join(faults_of(tmp_path, text))
    for expected in (
        "written for grade set 'kl', the data are graded by 'cartilage'",
        "line 5: '1' is on line 4 already",
        "grade 2 has no phrase; add '2: [...]'",
        "'2' is not a grade of 'cartilage'; write 0–2, without quotation marks",
        "'3' is not a grade",
        "grade 0, phrase 2: is empty",
        "grade 0, phrase 3: 7 is not text",
        "grade 3, phrase 1: 92 tokens, but the text tower reads 77",
        "grade 4: not a list",
        "key 'notes' is unknown",
    ):
        assert expected in faults


@pytest.mark.parametrize(
    ("grades", "expected"),
    [
        ("{0: [a], 1: [b]}", "grade 2 has no phrase"),
        ("{0: [a], 1: [b], 2: []}", "grade 2: not a list of at least one phrase"),
        ("{0: [a], 1: [b], 2: [A ]}", "grade 2, phrase 1: 'A' is under grade 0 already"),
        ("{0: [a], 1: [b], 2: [c], 0x1: [d]}", "'1' is on line 2 already"),
        ("{0: [a], true: [b], 2: [c]}", "'True' is not a grade"),
        ("[a, b]", "'grades' is not a mapping"),
    ],
)
def test_one_fault_is_one_line(tmp_path, grades, expected):
    faults = faults_of(tmp_path, f"grade_set: cartilage\ngrades: {grades}\n")
    assert any(expected in fault for fault in faults)


def test_not_a_mapping_and_missing_keys(tmp_path):
    assert faults_of(tmp_path, "- a\n") == ("is not a mapping with the keys grade_set and grades",)
    assert set(faults_of(tmp_path, "{}")) == {"key 'grade_set' is missing", "key 'grades' is missing"}


def test_unknown_names_and_broken_files_say_the_way_out(tmp_path):
    with pytest.raises(UserError, match="write one of cartilage, kl, or the path"):
        read_prompts("klg", KL)
    with pytest.raises(UserError, match="not readable as YAML"):
        read_prompts(written(tmp_path, "grades: [a"), KL)
    with pytest.raises(UserError, match="not readable as YAML"):
        read_prompts(written(tmp_path, "grade_set: !!python/object:os.system {}"), KL)
