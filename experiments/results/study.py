"""What a study consists of, as data: methods, the runs to train, and the claims to test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, NamedTuple

import torch

from knee.errors import UserError

Network = Literal["student", "teacher", "student + TTA", "teacher + TTA", "teacher + TTA, median"]
"""The network that predicts; with TTA (test-time augmentation) its mean over the image and its horizontal flip. It calls the
likeliest grade, or the median (``knee.grades.decide``)."""
Rule = Literal["above", "interval", "none"]


@dataclass(frozen=True)
class Row:
    """A method."""

    name: str
    title: str
    configs: tuple[str, ...]
    """Files in configs/; later ones override earlier ones, ``options`` override both."""
    network: Network = "teacher"
    """The network reported for the method."""
    options: tuple[str, ...] = ()
    trained_as: str = ""
    """The row whose runs this one evaluates, where it has none of its own."""
    rounds: tuple[str, ...] = ()
    """Options of `dcmt self-train`, which then trains the row."""
    kind: Literal["labels_only", "semi", "twin"] = "labels_only"
    """semi: uses unlabeled images; twin: as a semi row, but its extra terms see the labeled images only."""
    twin: str = ""
    """The twin of a semi row."""


class Cell(NamedTuple):
    """A method at a labeled fraction: reported as the mean over its seeds."""

    row: str
    fraction: float


class Run(NamedTuple):
    """One training."""

    row: str
    fraction: float
    seed: int

    @property
    def cell(self) -> Cell:
        """The cell it counts in."""
        return Cell(self.row, self.fraction)


def grid(rows: Iterable[str], fractions: Iterable[float], seeds: Iterable[int]) -> tuple[Run, ...]:
    """Every row at every fraction with every seed.

    >>> len(grid(["supervised", "dcmt"], [0.1, 0.3], [1, 2, 3]))
    12
    """
    return tuple(Run(row, fraction, seed) for fraction, row, seed in product(fractions, rows, seeds))


class Claim(NamedTuple):
    """``first`` compared with ``second`` (a cell or a published number) in one metric.

    ``rule`` "above": holds where the 95 % interval of the mean over the seeds is above ``bound``, undecided where the interval
    contains it. "interval": the claim is about the interval itself, and holds or does not. "none": nothing is claimed.
    """

    metric: str
    first: Cell
    second: Cell | float
    rule: Rule = "above"
    kind: Literal["difference", "ratio"] = "difference"
    bound: float = 0.0
    networks: tuple[Network, Network] | None = None
    """Networks other than those reported for the two rows."""
    source: str = ""
    """Where a published number comes from."""


@dataclass(frozen=True)
class Study:
    """Methods compared on one data set."""

    name: str
    title: str
    version: int
    """Raise it when code, or anything else that neither config nor data show, changes the numbers: all runs become stale."""
    command: str
    """Trains all runs."""
    grade_set: str
    checkpoint: Literal["last", "best"]
    """last: no model selection; best: by the validation split."""
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]
    """What is trained by default."""
    more_runs: tuple[Run, ...]
    """What ``--full`` trains besides."""
    metrics: tuple[str, ...]
    claims: tuple[Claim, ...]
    networks: tuple[Network, ...] = ("student", "teacher")
    options: tuple[str, ...] = ()
    """Options of train.py for every row."""
    options_at: dict[float, tuple[str, ...]] = field(default_factory=dict)
    """More options at a labeled fraction."""
    per_grade: tuple[float, ...] = ()
    """Labeled fractions with a table by grade."""
    published: dict[Cell, dict[str, float]] = field(default_factory=dict)
    """The numbers of the paper."""

    def row(self, name: str) -> Row:
        """A row by name. Raises UserError."""
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise UserError(f"{self.name} has no row {name}; it has {', '.join(found)}")
        return found[name]

    def trained(self, name: str) -> str:
        """The name of the row whose runs a row reads. Raises UserError."""
        return self.row(name).trained_as or name

    @property
    def cells(self) -> list[Cell]:
        """Every cell, by labeled fraction, then in the order of the rows."""
        order = [row.name for row in self.rows]
        return sorted(
            {run.cell for run in (*self.runs, *self.more_runs)}, key=lambda cell: (cell.fraction, order.index(cell.row))
        )

    def trainings(self, *, full: bool) -> list[Run]:
        """Each training once. The last runs come first: they take longest, and so leave no core idle at the end."""
        runs = (*self.runs, *(self.more_runs if full else ()))
        return list(dict.fromkeys(run._replace(row=self.trained(run.row)) for run in reversed(runs)))

    def select(
        self, *, full: bool, rows: Sequence[str] = (), fractions: Sequence[float] = (), seeds: Sequence[int] = ()
    ) -> list[Run]:
        """The trainings with one of the given rows, fractions and seeds; an empty list stands for all. Raises UserError."""
        found = self.trainings(full=full)
        wanted = {"row": [self.trained(name) for name in rows], "fraction": fractions, "seed": seeds}
        for name, values in wanted.items():
            known = {getattr(run, name) for run in found}
            if missing := set(values) - known:
                more = "" if full else "; --full has more"
                has = ", ".join(map(str, sorted(known)))
                raise UserError(f"{self.name} has no run of {name} {missing.pop()} here, only of {has}{more}")
            found = [run for run in found if not values or getattr(run, name) in values]
        return found


def run_name(study: str, run: Run) -> str:
    """The name of a run and of its stored files.

    >>> run_name("phantom", Run("dcmt", 0.1, 2))
    'phantom-dcmt-f0.1-s2'
    """
    return f"{study}-{run.row}-f{run.fraction:g}-s{run.seed}"


def percent(fraction: float) -> str:
    """A labeled fraction.

    >>> percent(0.1), percent(1.0)
    ('10 %', '100 %')
    """
    return f"{100 * fraction:g} %"


def fast_precision() -> str:
    """The precision of runs on a CPU: bf16 where the processor has matrix tiles for it (AMX), else fp32.

    Decided by the processor's features, not by timing, which could choose differently for two rows on a busy machine.
    """
    # Older versions of torch lack this function.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") else "fp32"
