"""The tables of Huo et al. 2020 on the phantom's MR slices."""

from __future__ import annotations

from experiments.results.machine import fast_precision
from experiments.results.study import Cell, Claim, Row, Rule, Study, Table, percent

SEEDS = (1, 2, 3)
"""Each draws a phantom, a split, masks, weights and batches of its own. Tuning looks at seed 0 alone."""

OPTIONS = (f"--fit.precision={fast_precision()}",)


def _configs(row: str) -> tuple[str, ...]:
    return "phantom.yaml", "phantom_long.yaml", f"rows/{row}.yaml"


ROWS = (
    Row("supervised", "Supervised", _configs("supervised"), network="student"),
    Row("supervised_ema", "Supervised, EMA evaluated", _configs("supervised"), trained_as="supervised"),
    Row("supervised_lambda_a", "Supervised, λ_a alone", _configs("supervised_lambda_a"), network="student"),
    Row("supervised_attention", "Supervised, attention loss", _configs("supervised_attention"), network="student"),
    Row("mean_teacher", "Mean teacher", _configs("mean_teacher")),
    Row("dcmt_nac", "DC-MT (NAC)", _configs("dcmt_nac")),
    Row("dcmt", "DC-MT", _configs("dcmt")),
)

_TEN = tuple(Cell(row.name, 0.1) for row in ROWS)
_ALL = Cell("supervised_attention", 1.0)
_MORE = tuple(
    Cell(row, fraction)
    for fraction in (0.3, 0.5)
    for row in ("supervised", "supervised_attention", "mean_teacher", "dcmt_nac", "dcmt")
)
_METRICS = ("recall", "macro_f1", "auc", "tiou")


def _published(recall: float, macro_f1: float, auc: float, tiou: float | None = None) -> dict[str, float]:
    values = {"recall": recall, "macro_f1": macro_f1, "auc": auc} | ({} if tiou is None else {"tiou": tiou})
    return {name: value / 100 for name, value in values.items()}


PAPER = {
    Cell("supervised", 0.1): _published(68.3, 68.2, 82.1, 7.5),
    Cell("supervised_lambda_a", 0.1): _published(74.4, 74.7, 86.0, 62.0),
    Cell("supervised_attention", 0.1): _published(75.8, 75.3, 89.4, 71.3),
    Cell("supervised_attention", 1.0): _published(85.0, 84.6, 93.7, 90.3),
    Cell("dcmt", 0.1): _published(79.3, 79.1, 90.1, 87.3),
    Cell("dcmt", 0.3): _published(83.1, 83.2, 91.9),
    Cell("dcmt", 0.5): _published(84.3, 83.8, 92.8),
    Cell("dcmt_nac", 0.1): _published(76.8, 76.6, 89.2),
    Cell("dcmt_nac", 0.3): _published(81.5, 81.5, 92.7),
    Cell("dcmt_nac", 0.5): _published(81.3, 81.4, 92.7),
    Cell("mean_teacher", 0.1): _published(73.4, 72.7, 86.2),
    Cell("mean_teacher", 0.3): _published(78.0, 78.0, 87.9),
    Cell("mean_teacher", 0.5): _published(81.0, 81.0, 90.9),
}

_BY_FRACTION = tuple(
    Cell(row, fraction) for fraction in (0.1, 0.3, 0.5) for row in ("mean_teacher", "dcmt_nac", "dcmt")
)
TABLES = (
    Table("table1", "Table 1: the attention loss, 10 % of the labels", _TEN[:4], _METRICS),
    Table(
        "table2", "Table 2: full supervision and DC-MT", (Cell("supervised_attention", 0.1), _ALL, _TEN[-1]), _METRICS
    ),
    Table("phantom", "All methods on the phantom", (*_TEN, _ALL), _METRICS, brief=True),
    Table("table3", "Table 3: what the consistency terms add", _BY_FRACTION, _METRICS),
    Table(
        "phantom_more", "30, 50 and 100 % of the labels", (*_MORE, _ALL, Cell("supervised", 1.0)), _METRICS, brief=True
    ),
)


def _at_ten(text: str, first: str, second: str, rule: Rule = "mean", metric: str = "macro_f1") -> Claim:
    return Claim(text, metric, Cell(first, 0.1), Cell(second, 0.1), rule=rule)


def _with_more_labels(fraction: float) -> tuple[Claim, ...]:
    pairs = (
        ("dcmt", "mean_teacher", "DC-MT above the mean teacher"),
        ("dcmt", "dcmt_nac", "DC-MT above DC-MT (NAC)"),
        ("dcmt", "supervised_attention", "DC-MT above supervised with attention loss"),
        ("mean_teacher", "supervised", "the mean teacher above supervised without attention loss"),
    )
    return tuple(
        Claim(f"F1 at {percent(fraction)}: {text}", "macro_f1", Cell(first, fraction), Cell(second, fraction))
        for first, second, text in pairs
    )


CLAIMS = (
    _at_ten("F1 at 10 %: the mean teacher above supervised without attention loss", "mean_teacher", "supervised"),
    _at_ten("F1 at 10 %: DC-MT (NAC) above the mean teacher", "dcmt_nac", "mean_teacher"),
    _at_ten("F1 at 10 %: DC-MT above DC-MT (NAC)", "dcmt", "dcmt_nac"),
    _at_ten(
        "F1 at 10 %: DC-MT above supervised with attention loss, interval above 0",
        "dcmt",
        "supervised_attention",
        rule="interval",
    ),
    _at_ten("F1 at 10 %: supervised with attention loss above without", "supervised_attention", "supervised"),
    _at_ten("F1 at 10 %: the attention loss above λ_a alone", "supervised_attention", "supervised_lambda_a"),
    Claim(
        "TIoU with the attention loss at least three times that without",
        "tiou",
        Cell("supervised_attention", 0.1),
        Cell("supervised", 0.1),
        kind="ratio",
        bound=3.0,
    ),
    _at_ten(
        "TIoU at 10 %: the attention loss above λ_a alone", "supervised_attention", "supervised_lambda_a", metric="tiou"
    ),
    _at_ten("TIoU at 10 %: DC-MT above supervised with attention loss", "dcmt", "supervised_attention", metric="tiou"),
    Claim("F1: how far DC-MT at 10 % is from full supervision", "macro_f1", Cell("dcmt", 0.1), _ALL, rule="stated"),
    _at_ten("F1 at 10 %: the mean teacher above averaging alone", "mean_teacher", "supervised_ema"),
    _at_ten("F1 at 10 %: averaging alone", "supervised_ema", "supervised", rule="stated"),
    *_with_more_labels(0.3),
    *_with_more_labels(0.5),
    Claim("F1 with all labels: what the attention loss adds", "macro_f1", _ALL, Cell("supervised", 1.0), rule="stated"),
)

PHANTOM = Study(
    name="phantom",
    title="The tables of Huo et al. 2020 on the phantom",
    command="make results",
    full_command="make results-full",
    rows=ROWS,
    cells=(*_TEN, _ALL),
    more_cells=(*_MORE, Cell("supervised", 1.0)),
    seeds=SEEDS,
    grade_set="cartilage",
    checkpoint="last",
    options=OPTIONS,
    code=("dcmt.train", "segmentation.train", "knee.phantom.write", "knee.data.strata"),
    tables=TABLES,
    claims=CLAIMS,
    paper=PAPER,
)
