"""What an ONNX file says about itself: everything that is needed to prepare an image and to read the outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from dcmt.commands.registry import RESEARCH
from knee.errors import UserError
from knee.grades import Decision, GradeSet
from knee.io.plain import check_plain, shown

SCHEMA = "dcmt-onnx/1"
KEY = "dcmt"
_MOST_LETTERS = 1 << 20


@dataclass(frozen=True)
class Card:
    """The metadata of an ONNX file, as JSON under its key ``dcmt``."""

    kind: str
    """grader or segmenter."""
    network: str
    """teacher, student or segmenter."""
    grade_set: str
    grades: list[str]
    """Names of the grades, from 0; empty for a segmenter."""
    image_size: int
    percentiles: list[float]
    """Grey values at these percentiles become black and white."""
    mirror_side: str
    """The side whose knees are flipped horizontally: L, R or none."""
    template: list[list[float]]
    """The mean knee, by which negatives are detected; empty if they are not."""
    modalities: list[str]
    """Of the training images, as far as their files give them."""
    distances: list[float]
    """Distances of the validation images from the training images, ascending; empty if not measured."""
    farthest: float
    """Images further away than this are unlike the training images; 0 if not measured."""
    temperature: float
    flip_tta: bool
    severest: bool
    """Whether a volume is graded by its most severe slices, not by their mean."""
    opset: int
    weights_sha256: str
    step: int
    license: str
    version: str
    threshold: float = 0.4
    """σ₀: the contour of attention is where x has this value."""
    decision: Decision = "likeliest"
    """How a grade is called from the probabilities (``knee.grades.decide``)."""
    int8: bool = False
    """Whether the weights are 8-bit integers."""
    research_use: str = RESEARCH
    schema: str = SCHEMA

    @property
    def scale(self) -> GradeSet:
        """The grade set, as far as a file knows it: without descriptions."""
        names = tuple(self.grades)
        return GradeSet(self.grade_set, self.grade_set, names, names, best_metric="kappa", decision=self.decision)

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_card(properties: Mapping[str, str], where: str) -> Card:
    """The card in the metadata of a file, which may come from a stranger. Raises UserError if it is not valid."""
    text = properties.get(KEY, "")
    if not text:
        raise UserError(f"{where} was not written by dcmt export: it has no metadata {KEY!r}; export the run again")
    try:
        if len(text) > _MOST_LETTERS:
            raise ValueError(f"it has {len(text):,} letters")
        values = json.loads(text)
        check_plain(values)
        card = Card(**values)
        _check(card)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: its metadata are not valid ({str(error)[:200]}); export the run again") from error
    return card


def _check(card: Card) -> None:
    for field in fields(Card):
        value = getattr(card, field.name)
        wanted: Any = {"str": str, "Decision": str, "int": int, "float": (int, float), "bool": bool}.get(
            str(field.type), list
        )
        if not isinstance(value, wanted) or (field.type != "bool" and isinstance(value, bool)):
            raise ValueError(f"{field.name} is {shown(value)}")
    numbers = [*card.percentiles, *card.distances, *(number for row in card.template for number in row)]
    checks = {
        "schema": card.schema == SCHEMA,
        "image_size": 16 <= card.image_size <= 2048,
        "percentiles": len(card.percentiles) == 2 and 0 <= card.percentiles[0] < card.percentiles[1] <= 100,
        "decision": card.decision in get_args(Decision),
        "threshold": 0 < card.threshold < 1,
        "mirror_side": card.mirror_side in ("none", "L", "R"),
        "grades": all(isinstance(name, str) for name in (*card.grades, *card.modalities)),
        "numbers": all(isinstance(number, int | float) for number in numbers),
        "template": not card.template or {len(row) for row in card.template} == {len(card.template)},
    }
    wrong = [name for name, right in checks.items() if not right]
    if wrong:
        raise ValueError(f"wrong: {', '.join(wrong)}")
