"""What an experiment is made of, as data: rows, cells, tables, claims. Nothing here trains or counts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from knee.errors import UserError

Network = Literal["student", "teacher", "student + mirror", "teacher + mirror"]
"""Which network grades; with mirror: the mean of its probabilities of the image and of its mirror image."""


Rule = Literal["mean", "interval", "stated"]


@dataclass(frozen=True)
class Row:
    """A method."""

    name: str
    """Short, for files and ``--rows``."""
    title: str
    configs: tuple[str, ...]
    """Files below configs/, stacked."""
    network: Network = "teacher"
    """The network whose numbers stand for the method."""
    options: tuple[str, ...] = ()
    """More options of train.py, over the files and over those of the study."""
    trained_as: str = ""
    """The row whose training is read, where this one only looks at it differently."""
    family: str = ""
    """Rows of one family are compared with each other and share all that is not the method; other families, other networks."""

    @property
    def training(self) -> str:
        """The name of the row that is trained for this one."""
        return self.trained_as or self.name


class Cell(NamedTuple):
    """A method at a share of the labels: what a line of a table reports, over all seeds."""

    row: str
    fraction: float


class Table(NamedTuple):
    """A table of a paper, or one in its form."""

    name: str
    title: str
    cells: Sequence[Cell]
    metrics: Sequence[str]
    brief: bool = False
    """Only the network that stands for each row."""


class Claim(NamedTuple):
    """One cell against another one or against a number, in one metric, and when it is said to hold.

    ``rule`` "mean": the mean over the seeds is above ``bound``, undecided where its 95 % interval has the bound in it;
    "interval": so is the lower end of the interval; "stated": nothing was claimed, the number is given. ``bound`` is 0 for
    differences unless said otherwise.
    """

    text: str
    metric: str
    first: Cell
    second: Cell | float
    kind: Literal["difference", "ratio"] = "difference"
    rule: Rule = "mean"
    bound: float = 0.0
    networks: tuple[Network, Network] | None = None
    """Other networks than those that stand for the two rows."""


@dataclass(frozen=True)
class Study:
    """Rows on one kind of data."""

    name: str
    title: str
    command: str
    """The command that a reader types."""
    full_command: str
    """The same with the part that takes long."""
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    """What is run by default."""
    more_cells: tuple[Cell, ...]
    """What ``--full`` runs besides."""
    seeds: tuple[int, ...]
    grade_set: str
    checkpoint: Literal["last", "best"]
    """last: the number of steps is fixed, nothing is selected; best: by the validation split."""
    options: tuple[str, ...]
    """Options of train.py for every row."""
    code: tuple[str, ...]
    """Modules that make the numbers; those that they import count too."""
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    options_at: dict[float, tuple[str, ...]] = field(default_factory=dict)
    """More of them at a labeled fraction."""
    more_seeds: dict[float, tuple[int, ...]] = field(default_factory=dict)
    """Seeds besides `seeds` that ``--full`` runs at a labeled fraction."""
    mirror: bool = False
    """Grade the mirror images too."""
    per_grade: tuple[float, ...] = ()
    """Labeled fractions with a table grade by grade."""
    networks: tuple[Network, ...] = ("student", "teacher")
    paper: dict[Cell, dict[str, float]] = field(default_factory=dict)
    """What was published, for comparison."""

    def row(self, name: str) -> Row:
        """A row by name. Raises UserError."""
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise UserError(f"{self.name} has no row {name}; it has {', '.join(found)}")
        return found[name]

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Every seed that a table may hold."""
        return tuple(sorted({*self.seeds, *(seed for more in self.more_seeds.values() for seed in more)}))

    def seeds_at(self, fraction: float, *, full: bool) -> tuple[int, ...]:
        """The seeds run at a labeled fraction."""
        return (*self.seeds, *(self.more_seeds.get(fraction, ()) if full else ()))

    def command_of(self, runs: Collection[tuple[str, float, int]]) -> str:
        """The command that makes runs, each told by its row's training, labeled fraction and seed."""
        default = {
            (cell.row, cell.fraction, seed)
            for cell in self.trainings(full=False)
            for seed in self.seeds_at(cell.fraction, full=False)
        }
        return self.command if default.issuperset(runs) else self.full_command

    def trainings(self, *, full: bool, rows: Sequence[str] = (), fractions: Sequence[float] = ()) -> list[Cell]:
        """The cells to train, each once; those of ``rows`` and ``fractions`` alone where given. Raises UserError.

        The last comes first: longer runs stand further down, and begun early they leave no core idle at the end.
        """
        wanted = {self.row(name).training for name in rows} or {row.training for row in self.rows}
        cells = (*self.cells, *(self.more_cells if full else ()))
        here = sorted({cell.fraction for cell in cells})
        if unknown := sorted(set(fractions) - set(here)):
            has = ", ".join(f"{fraction:g}" for fraction in here)
            more = "" if full else "; --full has more"
            raise UserError(f"{self.name} has no labeled fraction {unknown[0]:g}; it has {has}{more}")
        trained = (Cell(self.row(cell.row).training, cell.fraction) for cell in reversed(cells))
        found = list(
            dict.fromkeys(
                cell for cell in trained if cell.row in wanted and (not fractions or cell.fraction in fractions)
            )
        )
        if not found:
            share = f" at {', '.join(f'{fraction:g}' for fraction in fractions)}" if fractions else ""
            more = "" if full else " in the part run by default; --full has more"
            raise UserError(f"{self.name} has no cell of {', '.join(rows)}{share}{more}")
        return found


def run_name(study: str, row: str, fraction: float, seed: int) -> str:
    """The name of a run and of the files of its result.

    >>> run_name("phantom", "dcmt", 0.1, 2)
    'phantom-dcmt-f0.1-s2'
    """
    return f"{study}-{row}-f{fraction:g}-s{seed}"


def percent(fraction: float) -> str:
    """A share of the labels.

    >>> percent(0.1), percent(1.0)
    ('10 %', '100 %')
    """
    return f"{100 * fraction:g} %"
