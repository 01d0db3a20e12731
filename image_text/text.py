"""Reports as tokens: cleaning, masking of words that name the grade, and hashed words.

A vocabulary of the reports would be patient data, so there is none: a word's token is its hash. Nothing of a report can be
read from a tokenizer or a checkpoint, except whether a guessed word may have occurred.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from knee.errors import UserError
from knee.io.unique_yaml import read_unique

Tokens = NDArray[np.int32]
PAD, START, MASK, FIRST_WORD = 0, 1, 2, 3
MASKED = "\ue000"
"""Stands for a masked passage within a text; a private character of Unicode."""
_SHIPPED = Path(__file__).with_name("grade_words.yaml")
_TAG = re.compile(r"<(?:!--.*?--|/?[a-z][^<>]*|![^<>]*)>", re.IGNORECASE | re.DOTALL)
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f"
_WORD = re.compile(rf"{MASKED}|[{_UNSPACED}]|[0-9]+(?:[.,][0-9]+)?|[^\W\d_{_UNSPACED}]+|[^\w\s]")


class Vocabulary(Protocol):
    """What turns texts into tokens."""

    def encode(self, texts: Sequence[str], *, length: int) -> tuple[Tokens, int]:
        """Cleaned (and masked) texts → tokens int32 (N, length), padded, and how many texts were cut at ``length``."""
        ...


@dataclass(frozen=True)
class HashedWords:
    """The vocabulary of the built-in text encoder: a word's token is its hash, in one of so many ``buckets``."""

    buckets: int

    def encode(self, texts: Sequence[str], *, length: int) -> tuple[Tokens, int]:
        """As the function ``encode``."""
        return encode(texts, buckets=self.buckets, length=length)


def cleaned(text: str) -> str:
    """A report as plain text: HTML tags and entities resolved, Unicode composed (NFKC), white space single.

    >>> cleaned("<p>Joint&nbsp;space\\n narrowed &lt; 3 mm</p>")
    'Joint space narrowed < 3 mm'
    """
    plain = html.unescape(_TAG.sub(" ", text)).replace(MASKED, " ")
    return " ".join(unicodedata.normalize("NFKC", plain).split())


def read_grade_words(path: str = "") -> tuple[re.Pattern[str], ...]:
    """The expressions by which a report names the grade, from a YAML list; empty: those that come with the package.

    Raises UserError if the file is not a list of regular expressions.
    """
    source = Path(path) if path else _SHIPPED
    try:
        words, _ = read_unique(source.read_text(encoding="utf-8"))
        if not (isinstance(words, list) and all(isinstance(word, str) and word for word in words)):
            raise ValueError("it is not a list of texts")
        return tuple(re.compile(word, re.IGNORECASE) for word in words)
    except (OSError, ValueError, yaml.YAMLError, RecursionError, re.error) as error:
        raise UserError(
            f"text.grade_words: {source} is not a YAML list of regular expressions ({' '.join(str(error).split())[:200]}); see "
            "image_text/grade_words.yaml"
        ) from error


def masked(text: str, grade_words: Sequence[re.Pattern[str]]) -> tuple[str, int]:
    """A cleaned report in which passages that name the grade are one mask each, and how many there were.

    >>> masked("Narrowing, KL 3.", read_grade_words())[1], masked("Narrowing of the joint.", read_grade_words())[1]
    (1, 0)
    """
    count = 0
    for words in grade_words:
        text, found = words.subn(f" {MASKED} ", text)
        count += found
    return text, count


def tokenize(text: str, *, buckets: int) -> list[int]:
    """The tokens of a cleaned text, in [1, FIRST_WORD + buckets): START, then one for each word, number and sign.

    Case is ignored. Scripts without spaces are read character by character. A word's token is a hash of the word.

    >>> tokenize("Mild. MILD", buckets=100)[1] == tokenize("Mild. MILD", buckets=100)[3]
    True
    """
    return [START, *(_token(word, buckets) for word in _WORD.findall(text.casefold()))]


@lru_cache(maxsize=1 << 16)
def _token(word: str, buckets: int) -> int:
    if word == MASKED:
        return MASK
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return FIRST_WORD + int.from_bytes(digest, "little") % buckets


def encode(texts: Sequence[str], *, buckets: int, length: int) -> tuple[Tokens, int]:
    """Cleaned (and masked) texts → tokens int32 (N, length), padded, and how many texts were cut at ``length`` tokens.

    An empty text has no token at all, not even START, so a row without a report is all PAD.
    """
    tokens = np.full((len(texts), length), PAD, np.int32)
    cut = 0
    for row, text in zip(tokens, texts, strict=True):
        found = tokenize(text, buckets=buckets) if text else []
        cut += len(found) > length
        row[: len(found)] = found[:length]
    return tokens, cut
