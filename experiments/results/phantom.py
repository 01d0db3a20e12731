"""The tables of Huo et al. 2020 on the phantom's MR slices."""

from __future__ import annotations

from experiments.results.study import Cell, Claim, Row, Rule, Study, fast_precision, grid

SEEDS = (1, 2, 3)
"""Each has its own phantom, split, masks, weights and batches. Settings were tuned on seed 0, which is not reported."""
METRICS = ("recall", "macro_f1", "auc", "tiou")


def _row(name: str, title: str, **options: str) -> Row:
    config = f"rows/{options.get('trained_as', name)}.yaml"
    return Row(name, title, ("phantom.yaml", "phantom_long.yaml", config), **options)  # type: ignore[arg-type]


ROWS = (
    _row("supervised", "Supervised", network="student"),
    _row("supervised_ema", "Supervised, EMA evaluated", trained_as="supervised"),
    _row("supervised_lambda_a", "Supervised, only λ_a", network="student"),
    _row("supervised_attention", "Supervised, attention loss", network="student"),
    _row("mean_teacher", "Mean teacher"),
    _row("dcmt_nac", "DC-MT (NAC)"),
    _row("dcmt", "DC-MT"),
)

_IN_THE_FULL_PART = ("supervised", "supervised_attention", "mean_teacher", "dcmt_nac", "dcmt")
_PUBLISHED = {
    ("supervised", 0.1): (68.3, 68.2, 82.1, 7.5),
    ("supervised_lambda_a", 0.1): (74.4, 74.7, 86.0, 62.0),
    ("supervised_attention", 0.1): (75.8, 75.3, 89.4, 71.3),
    ("supervised_attention", 1.0): (85.0, 84.6, 93.7, 90.3),
    ("dcmt", 0.1): (79.3, 79.1, 90.1, 87.3),
    ("dcmt", 0.3): (83.1, 83.2, 91.9),
    ("dcmt", 0.5): (84.3, 83.8, 92.8),
    ("dcmt_nac", 0.1): (76.8, 76.6, 89.2),
    ("dcmt_nac", 0.3): (81.5, 81.5, 92.7),
    ("dcmt_nac", 0.5): (81.3, 81.4, 92.7),
    ("mean_teacher", 0.1): (73.4, 72.7, 86.2),
    ("mean_teacher", 0.3): (78.0, 78.0, 87.9),
    ("mean_teacher", 0.5): (81.0, 81.0, 90.9),
}


def _claim(
    metric: str, first: str, second: str, rule: Rule = "above", *, at: float = 0.1, second_at: float = 0
) -> Claim:
    return Claim(metric, Cell(first, at), Cell(second, second_at or at), rule)


CLAIMS = (
    _claim("macro_f1", "mean_teacher", "supervised"),
    _claim("macro_f1", "dcmt_nac", "mean_teacher"),
    _claim("macro_f1", "dcmt", "dcmt_nac"),
    _claim("macro_f1", "dcmt", "supervised_attention", "interval"),
    _claim("macro_f1", "supervised_attention", "supervised"),
    _claim("macro_f1", "supervised_attention", "supervised_lambda_a"),
    _claim("tiou", "supervised_attention", "supervised")._replace(kind="ratio", bound=3.0),
    _claim("tiou", "supervised_attention", "supervised_lambda_a"),
    _claim("tiou", "dcmt", "supervised_attention"),
    _claim("macro_f1", "dcmt", "supervised_attention", "none", second_at=1.0),
    _claim("macro_f1", "mean_teacher", "supervised_ema"),
    _claim("macro_f1", "supervised_ema", "supervised", "none"),
    *(
        _claim("macro_f1", first, second, at=fraction)
        for fraction in (0.3, 0.5)
        for first, second in (
            ("dcmt", "mean_teacher"),
            ("dcmt", "dcmt_nac"),
            ("dcmt", "supervised_attention"),
            ("mean_teacher", "supervised"),
        )
    ),
    _claim("macro_f1", "supervised_attention", "supervised", "none", at=1.0),
)

PHANTOM = Study(
    name="phantom",
    title="The tables of Huo et al. 2020 on the phantom",
    version=1,
    command="make results-full",
    grade_set="cartilage",
    checkpoint="last",
    rows=ROWS,
    runs=(*grid([row.name for row in ROWS], [0.1], SEEDS), *grid(["supervised_attention"], [1.0], SEEDS)),
    more_runs=(*grid(_IN_THE_FULL_PART, [0.3, 0.5], SEEDS), *grid(["supervised"], [1.0], SEEDS)),
    metrics=METRICS,
    claims=CLAIMS,
    options=(f"--fit.precision={fast_precision()}",),
    published={
        Cell(*cell): {metric: value / 100 for metric, value in zip(METRICS, values, strict=False)}
        for cell, values in _PUBLISHED.items()
    },
)
