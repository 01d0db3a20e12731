"""Grade sets: the grades of a scale, their meaning, and the metric that selects the best checkpoint. Data, not code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import yaml

from knee.errors import Faults, UserError
from knee.io.unique_yaml import read_unique

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_KEYS = ("name", "title", "best_metric", "grades")
_OPTIONAL = ("disease_from", "decision")
Decision = Literal["likeliest", "median"]
BEST_METRICS = ("accuracy", "recall", "macro_f1", "auc", "kappa", "adjacent", "balanced_accuracy", "kappa_balanced")
"""The metrics that can select the best checkpoint: computed during training; larger is better. kappa_balanced is the mean of
kappa and balanced accuracy: unlike kappa alone, it falls if a grade in the middle is never predicted."""
_ROUNDING = 1e-6
"""A float32 softmax of exact halves may be off by 1e-8."""


Numbers = TypeVar("Numbers", "NDArray[Any]", "Tensor")


def decide(probabilities: Numbers, decision: Decision) -> Numbers:
    """The grades (N,) int64 that are called from probabilities (N, K), an array or a tensor.

    ``likeliest``: the most probable grade, which is right most often. ``median``: the lowest grade g with P(grade ≤ g) ≥ 1/2,
    which is the fewest grades off on average, as with the thresholds of 1/2 in CORAL (Cao et al. 2020,
    doi:10.1016/j.patrec.2020.11.008). It calls a grade between two others where both are about as probable.

    >>> import numpy as np
    >>> unsure = np.array([[0.40, 0.25, 0.35]])
    >>> decide(unsure, "likeliest").item(), decide(unsure, "median").item()
    (0, 1)
    """
    likeliest: Numbers = probabilities.argmax(1)
    median: Numbers = (probabilities.cumsum(1)[:, :-1] < 0.5 - _ROUNDING).sum(1)
    return likeliest if decision == "likeliest" else median


@dataclass(frozen=True)
class GradeSet:
    """The K grades of one scale, 0 to K − 1.

    >>> load_grade_set("kl").parse("2.0")
    2
    """

    name: str
    title: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    best_metric: str
    disease_from: int = 1
    """The first grade that counts as disease, from 1 to K − 1."""
    decision: Decision = "likeliest"
    """How a grade is called from probabilities (`decide`)."""

    @property
    def count(self) -> int:
        """K, the number of grades."""
        return len(self.names)

    @property
    def span(self) -> str:
        """The grades as a reader writes them, ``0–4``."""
        return f"0–{self.count - 1}"

    def parse(self, text: str) -> int | None:
        """The grade written as ``text``: '2' and '2.0' are 2, empty is None (ungraded).

        Raises:
            UserError: any other text; the message says what to write instead.
        """
        text = text.strip()
        if not text:
            return None
        if re.fullmatch(r"[0-9]{1,3}(\.0*)?", text) and int(text.partition(".")[0]) < self.count:
            return int(text.partition(".")[0])
        raise UserError(f"grade '{text}' is not {self.span} or empty; {self._hint(text)}")

    def _hint(self, text: str) -> str:
        numbers = re.findall(r"\d+(?:\.\d+)?", text)
        if text.lower() in self.names:
            return f"write {self.names.index(text.lower())}"
        if (
            len(numbers) == 1
            and len(numbers[0]) < 4
            and numbers[0].isdigit()
            and "-" not in text
            and int(numbers[0]) < self.count
        ):
            return f"write {int(numbers[0])}"
        return f"write a whole number from 0 to {self.count - 1}, or leave it empty for an ungraded image"


def load_grade_set(source: str | Path) -> GradeSet:
    """The grade set called ``source`` (``kl``, ``cartilage``), or the one in a YAML file.

    The file has ``name``, ``title``, ``best_metric`` (one of ``BEST_METRICS``) and ``grades``: a list of ``name`` and
    ``description``, grade 0 first; if it is not 1, ``disease_from``; if it is not likeliest, ``decision``.

    Raises:
        UserError: no such set or file; Faults: all errors in the file.

    >>> load_grade_set("cartilage").names
    ('normal', 'partial-thickness', 'full-thickness')
    """
    text = _grade_set_text(source)
    try:
        content, duplicates = read_unique(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: e.g. a date that does not exist
        raise UserError(
            f"{source}: not readable as YAML ({type(error).__name__}); see knee/grade_sets/kl.yaml"
        ) from error
    faults = duplicates + _faults(content)
    if faults:
        raise Faults(faults, summary=f"{source}: not a grade set (an example is knee/grade_sets/kl.yaml):")
    grades = content["grades"]
    return GradeSet(
        name=content["name"],
        title=content["title"],
        names=tuple(grade["name"] for grade in grades),
        descriptions=tuple(grade["description"].strip() for grade in grades),
        best_metric=content["best_metric"],
        disease_from=content.get("disease_from", 1),
        decision=content.get("decision", "likeliest"),
    )


def grade_set_yaml(grade_set: GradeSet) -> str:
    """A grade set as ``load_grade_set`` reads it from a file.

    >>> grade_set_yaml(load_grade_set("cartilage")).splitlines()[0]
    'name: cartilage'
    """
    grades = [
        {"name": name, "description": description}
        for name, description in zip(grade_set.names, grade_set.descriptions, strict=True)
    ]
    head: dict[str, Any] = {"name": grade_set.name, "title": grade_set.title, "best_metric": grade_set.best_metric}
    if grade_set.disease_from != 1:
        head["disease_from"] = grade_set.disease_from
    if grade_set.decision != "likeliest":
        head["decision"] = grade_set.decision
    return yaml.safe_dump({**head, "grades": grades}, sort_keys=False, allow_unicode=True)


def shipped_grade_sets() -> list[str]:
    """Names of the grade sets included in this package."""
    shipped = resources.files("knee.grade_sets")
    return sorted(file.name.removesuffix(".yaml") for file in shipped.iterdir() if file.name.endswith(".yaml"))


def _grade_set_text(source: str | Path) -> str:
    known = shipped_grade_sets()
    if str(source) in known:
        return (resources.files("knee.grade_sets") / f"{source}.yaml").read_text(encoding="utf-8")
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        names = ", ".join(known)
        raise UserError(f"grade set '{source}' is unknown; write one of {names}, or the path of a YAML file") from error


def _faults(content: Any) -> list[str]:
    if not isinstance(content, dict):
        return ["is not a mapping with the keys " + ", ".join(_KEYS)]
    faults = [f"key '{key}' is missing" for key in _KEYS if key not in content]
    faults += [
        f"key '{key}' is unknown; the keys are {', '.join(_KEYS)}" for key in content if key not in (*_KEYS, *_OPTIONAL)
    ]
    faults += [f"'{key}' is not text" for key in _KEYS[:3] if key in content and not isinstance(content[key], str)]
    if isinstance(content.get("name"), str) and not content["name"].strip():
        faults.append("'name' is empty; write a short name, such as kl")
    metric = content.get("best_metric")
    if isinstance(metric, str) and metric not in BEST_METRICS:
        faults.append(
            f"'best_metric' is {metric!r}, which is not one of the metrics; write one of {', '.join(BEST_METRICS)}"
        )
    if (decision := content.get("decision", "likeliest")) not in get_args(Decision):
        faults.append(f"'decision' is {decision!r}; write one of {', '.join(get_args(Decision))}")
    grades = content.get("grades", [])
    if "grades" in content and (not isinstance(grades, list) or len(grades) < 2):
        return [*faults, "'grades' is not a list of at least two grades"]
    first = content.get("disease_from", 1)
    if isinstance(first, bool) or not isinstance(first, int) or not 0 < first < len(grades):
        faults.append(f"'disease_from' is {first!r}; write a grade from 1 to {max(len(grades) - 1, 1)}")
    for number, grade in enumerate(grades):
        if not isinstance(grade, dict) or set(grade) != {"name", "description"}:
            faults.append(f"grade {number} does not have exactly the keys name and description")
        elif not all(isinstance(value, str) for value in grade.values()):
            faults.append(f"grade {number}: name and description must be text; put quotation marks around them")
    names = [grade["name"] for grade in grades if isinstance(grade, dict) and isinstance(grade.get("name"), str)]
    if len(set(names)) < len(names):
        faults.append("two grades have the same name")
    return faults
