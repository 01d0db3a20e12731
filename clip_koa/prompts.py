"""Prompt sets: the definition of each grade as phrases to compare with images, in a YAML file that is checked when read.

    grade_set: kl
    grades:
      0: [a phrase, another phrasing of it]
      1: [...]

The file names its grade set and has at least one phrase for every grade. Several phrases of a grade are embedded separately
and averaged, like CLIP's prompt ensembles (Radford et al. 2021, section 3.1.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from torch import Tensor

from knee.errors import Faults, UserError
from knee.grades import GradeSet
from knee.io.unique_yaml import read_unique

_SHIPPED = Path(__file__).parent / "prompt_sets"
_KEYS = ("grade_set", "grades")


class Tokenizer(Protocol):
    """Converts phrases to token numbers; the interface of open_clip's tokenizers."""

    context_length: int

    def __call__(self, texts: list[str]) -> Tensor:
        """P phrases → (P, context_length) int64; longer phrases are silently truncated."""
        ...


@dataclass(frozen=True)
class PromptSet:
    """The phrases of all grades of a grade set, grade 0 first."""

    grade_set: str
    phrases: tuple[tuple[str, ...], ...]

    @property
    def count(self) -> int:
        """K, the number of grades."""
        return len(self.phrases)

    @property
    def flat(self) -> tuple[list[str], list[int]]:
        """All phrases in order, and the grade of each."""
        pairs = [(phrase, grade) for grade, phrases in enumerate(self.phrases) for phrase in phrases]
        return [phrase for phrase, _ in pairs], [grade for _, grade in pairs]


def read_prompts(source: str | Path, grade_set: GradeSet, *, tokenizer: Tokenizer | None = None) -> PromptSet:
    """The prompt set called ``source`` (``kl``, ``cartilage``), or the one in a YAML file, for ``grade_set``.

    With a ``tokenizer``, phrases longer than its context are refused, since it would silently truncate them.

    Raises:
        UserError: no such set or file, or not YAML; Faults: all errors in the file.

    >>> from knee.grades import load_grade_set
    >>> read_prompts("cartilage", load_grade_set("cartilage")).phrases[0][2]
    'normal cartilage of the femoral condyle'
    """
    text = _prompt_text(source)
    try:
        content, duplicates = read_unique(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: not readable as YAML ({problem}); see clip_koa/prompt_sets/kl.yaml") from error
    faults = duplicates + list(_faults(content, grade_set, tokenizer))
    if faults:
        raise Faults(
            faults,
            summary=f"{source}: not a prompt set for '{grade_set.name}' (an example is clip_koa/prompt_sets/kl.yaml):",
        )
    phrases = tuple(tuple(_tidy(phrase) for phrase in content["grades"][grade]) for grade in range(grade_set.count))
    return PromptSet(grade_set.name, phrases)


def count_tokens(tokenizer: Tokenizer, phrase: str) -> int:
    """The length of a phrase in tokens before truncation, including start and end tokens.

    It uses the tokenizer's own encoder if there is one (open_clip); other tokenizers are assumed to pad with zeros.
    """
    encode: Callable[[str], list[int]] | None = getattr(tokenizer, "encode", None)
    if encode is not None:
        return len(encode(phrase)) + 2
    inner: Any = getattr(tokenizer, "tokenizer", None)  # the transformers tokenizer inside open_clip's wrapper
    if inner is not None:
        return len(inner(phrase)["input_ids"])
    return int((tokenizer([phrase]) != 0).sum())


def _prompt_text(source: str | Path) -> str:
    known = sorted(path.stem for path in _SHIPPED.glob("*.yaml"))
    path = _SHIPPED / f"{source}.yaml" if str(source) in known else Path(source)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"prompt set '{source}' is unknown; write one of {', '.join(known)}, or the path of a YAML file"
        ) from error


def _faults(content: Any, grade_set: GradeSet, tokenizer: Tokenizer | None) -> Iterator[str]:
    if not isinstance(content, dict):
        yield "is not a mapping with the keys " + " and ".join(_KEYS)
        return
    yield from (f"key '{key}' is missing" for key in _KEYS if key not in content)
    yield from (f"key '{key}' is unknown; the keys are {' and '.join(_KEYS)}" for key in content if key not in _KEYS)
    if "grade_set" in content and content["grade_set"] != grade_set.name:
        yield f"is written for grade set '{content['grade_set']}', the data are graded by '{grade_set.name}'"
    grades = content.get("grades", {})
    if not isinstance(grades, dict):
        yield f"'grades' is not a mapping from each grade ({grade_set.span}) to its phrases"
        return
    known = set(range(grade_set.count))
    written = {key for key in grades if type(key) is int}
    if "grades" in content:
        yield from (f"grade {grade} has no phrase; add '{grade}: [...]'" for grade in sorted(known - written))
    for key in grades:
        if type(key) is not int or key not in known:
            yield f"'{key}' is not a grade of '{grade_set.name}'; write {grade_set.span}, without quotation marks"
    first: dict[str, Any] = {}
    for key, phrases in grades.items():
        yield from _phrase_faults(key, phrases, first, tokenizer)


def _phrase_faults(grade: Any, phrases: Any, first: dict[str, Any], tokenizer: Tokenizer | None) -> Iterator[str]:
    if not isinstance(phrases, list) or not phrases:
        yield f"grade {grade}: not a list of at least one phrase; write '- a phrase' below it"
        return
    for number, phrase in enumerate(phrases, start=1):
        where = f"grade {grade}, phrase {number}"
        if not isinstance(phrase, str):
            yield f"{where}: {phrase!r} is not text; put quotation marks around it"
        elif not phrase.strip():
            yield f"{where}: is empty; write a phrase, or remove the line"
        elif _tidy(phrase).lower() in first:
            yield f"{where}: '{_tidy(phrase)}' is under grade {first[_tidy(phrase).lower()]} already; remove one of them"
        else:
            first[_tidy(phrase).lower()] = grade
            if tokenizer is not None and (length := count_tokens(tokenizer, _tidy(phrase))) > tokenizer.context_length:
                yield (
                    f"{where}: {length} tokens, but the text tower reads {tokenizer.context_length}; "
                    f"shorten '{_tidy(phrase)[:40]}…' or split it into two phrases"
                )


def _tidy(phrase: str) -> str:
    return " ".join(phrase.split())
