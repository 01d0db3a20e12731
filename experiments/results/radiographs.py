"""Few labels on real radiographs (doi:10.17632/56rmx5bjcr.1), from random weights; grade by grade as Chavoshi et al."""

from __future__ import annotations

from experiments.results.machine import fast_precision
from experiments.results.study import Cell, Claim, Row, Study, Table, percent

# With few labels supervised training changes little in kappa from 1,000 steps on, and its macro F1 rises until 1,400 to 1,600
# (`docs/log.md`): shorter runs rank methods by speed.
OPTIONS = (
    "--fit.steps=1600",
    "--fit.validate_every=200",
    f"--fit.precision={fast_precision()}",
)

# There are no masks of cartilage here.
NO_MASKS = ("--loss.attention=0", "--loss.attention_consistency=0")

# Few labeled images (576 at 10 %) are soon known by heart: wider views.
_WIDER_VIEWS = (
    "--views.rotate_degrees=10",
    "--views.translate=0.07",
    "--views.zoom_out=0.12",
    "--views.zoom_in=0.15",
)


def _row(name: str, title: str, *configs: str, options: tuple[str, ...] = ()) -> Row:
    return Row(name, title, configs, network="teacher + mirror", options=options)


_MEAN_TEACHER = ("kl_xray.yaml", "rows/mean_teacher.yaml")
_PLAIN = ("--loss.probability_consistency=10",)
ROWS = (
    _row("supervised", "Supervised", "kl_xray.yaml", "rows/supervised.yaml"),
    _row("mean_teacher", "Mean teacher", *_MEAN_TEACHER, options=_PLAIN),
    # The teacher's answer is the mean of those to a knee and to its mirror image: the config's default.
    _row("mean_teacher_mirror", "Mean teacher, mirrored answers", "kl_xray.yaml", options=NO_MASKS),
    _row("clip_koa", "Mean teacher, CLIP-KOA head", "dcmt_clip_koa.yaml", options=NO_MASKS),
    # In the full part at 10 %, as the plain mean teacher. What the row above owes to its head, and what to unlabeled images:
    _row(
        "clip_koa_supervised",
        "Supervised, CLIP-KOA head",
        "dcmt_clip_koa.yaml",
        options=(*NO_MASKS, "--loss.probability_consistency=0", "--data.unlabeled_per_batch=0"),
    ),
    # and what to the flip terms that come with it.
    _row(
        "mean_teacher_flip",
        "Mean teacher, flip terms",
        *_MEAN_TEACHER,
        options=(*_PLAIN, "--loss.symmetry=true", "--loss.flip_consistency=10"),
    ),
)

_FEW = {row.name: Cell(row.name, 0.1) for row in ROWS}
_MORE_FEW = ("mean_teacher", "clip_koa_supervised", "mean_teacher_flip")
_ALL = {name: Cell(name, 1.0) for name in ("supervised", "mean_teacher", "clip_koa")}
_CELLS = (*(cell for name, cell in _FEW.items() if name not in _MORE_FEW), *_ALL.values())
# By the share of labels, the config's default stands for the mean teacher.
_MORE_FRACTIONS = (0.05, 0.25, 0.5)
_MORE = tuple(
    Cell(name, fraction) for fraction in _MORE_FRACTIONS for name in ("supervised", "mean_teacher_mirror", "clip_koa")
)
# The plain mean teacher, and the head without a teacher, stand beside them where they were run.
_BRIEF = (
    *(_FEW[name] for name in ("supervised", "clip_koa_supervised", "mean_teacher", "mean_teacher_mirror", "clip_koa")),
    *_ALL.values(),
)
METRICS = ("accuracy", "kappa", "adjacent", "macro_f1", "ece", "flip_changed", "flip_divergence")
PUBLISHED_CLIP_KOA = 0.7186
"""Accuracy that Jeong and Lee 2025 print for this test split, with towers from 400 million pairs."""
# A plain ResNet-18 at 112 px: 16 epochs, flips, affine, gamma, mirrored-pair prediction; measured by other code, on this split.
_BASELINE = {0.1: {"accuracy": 0.531, "kappa": 0.618}, 1.0: {"accuracy": 0.628, "kappa": 0.734}}


def _above_baseline(cell: Cell, method: str, metric: str) -> Claim:
    text = f"{metric} with {percent(cell.fraction)} of the labels, {method}, above the plain ResNet-18"
    return Claim(text, metric, cell, _BASELINE[cell.fraction][metric])


CLAIMS = (
    *(
        Claim(
            f"kappa at 10 %: {title} above supervised, interval above 0",
            "kappa",
            _FEW[row],
            _FEW["supervised"],
            rule="interval",
        )
        for title, row in (
            ("the mean teacher", "mean_teacher"),
            ("the mean teacher with CLIP-KOA head", "clip_koa"),
            ("the mean teacher with flip terms", "mean_teacher_flip"),
            ("the mean teacher with mirrored answers", "mean_teacher_mirror"),
        )
    ),
    Claim(
        "kappa at 10 %: the mean teacher with mirrored answers minus supervised, both asked about one side alone",
        "kappa",
        _FEW["mean_teacher_mirror"],
        _FEW["supervised"],
        rule="stated",
        networks=("teacher", "teacher"),
    ),
    *(
        Claim(f"F1 at 10 %: {title} minus supervised", "macro_f1", _FEW[row], _FEW["supervised"], rule="stated")
        for title, row in (
            ("the mean teacher with mirrored answers", "mean_teacher_mirror"),
            ("the mean teacher with CLIP-KOA head", "clip_koa"),
            ("the mean teacher with flip terms", "mean_teacher_flip"),
        )
    ),
    *(
        Claim(
            f"{name} at 10 %: the CLIP-KOA head without a teacher minus {title}",
            metric,
            _FEW["clip_koa_supervised"],
            _FEW[row],
            rule="stated",
        )
        for title, row in (
            ("supervised", "supervised"),
            ("the mean teacher with mirrored answers", "mean_teacher_mirror"),
        )
        for name, metric in (("kappa", "kappa"), ("F1", "macro_f1"))
    ),
    Claim(
        "kappa at 10 %: what the teacher and flip consistency on unlabeled images add to the CLIP-KOA head",
        "kappa",
        _FEW["clip_koa"],
        _FEW["clip_koa_supervised"],
        rule="stated",
    ),
    *(
        Claim(
            f"kappa at 10 %: what {title} add to the mean teacher",
            "kappa",
            _FEW[row],
            _FEW["mean_teacher"],
            rule="stated",
        )
        for title, row in (("mirrored answers", "mean_teacher_mirror"), ("the flip terms", "mean_teacher_flip"))
    ),
    *(
        _above_baseline(cell, method, metric)
        for cell, method in (
            (_FEW["supervised"], "supervised"),
            (_FEW["clip_koa"], "CLIP-KOA head"),
            (_FEW["mean_teacher_mirror"], "mean teacher with mirrored answers"),
            (_ALL["supervised"], "supervised"),
        )
        for metric in ("accuracy", "kappa")
    ),
    *(
        Claim(
            f"{name} at {percent(fraction)}: {title} minus supervised",
            metric,
            Cell(row, fraction),
            Cell("supervised", fraction),
            rule="stated",
        )
        for fraction in _MORE_FRACTIONS
        for name, metric in (("kappa", "kappa"), ("F1", "macro_f1"))
        for row, title in (
            ("mean_teacher_mirror", "the mean teacher with mirrored answers"),
            ("clip_koa", "the mean teacher with CLIP-KOA head"),
        )
    ),
    *(
        Claim(f"{name} with all labels: {title} minus supervised", metric, _ALL[row], _ALL["supervised"], rule="stated")
        for name, metric in (("kappa", "kappa"), ("F1", "macro_f1"))
        for row, title in (("mean_teacher", "the mean teacher"), ("clip_koa", "the mean teacher with CLIP-KOA head"))
    ),
    Claim(
        "accuracy with all labels, CLIP-KOA head, above what CLIP-KOA printed for this split (weights from 400 million pairs)",
        "accuracy",
        _ALL["clip_koa"],
        PUBLISHED_CLIP_KOA,
    ),
    Claim(
        "what mirrored-pair prediction adds to supervised training with all labels",
        "accuracy",
        _ALL["supervised"],
        _ALL["supervised"],
        rule="stated",
        networks=("teacher + mirror", "teacher"),
    ),
    Claim(
        "flip disagreement with all labels: CLIP-KOA head minus supervised",
        "flip_changed",
        _ALL["clip_koa"],
        _ALL["supervised"],
        rule="stated",
        networks=("teacher", "teacher"),
    ),
)

RADIOGRAPHS = Study(
    name="radiographs",
    title="Few labels on real radiographs, from random weights",
    command="make results-radiographs RADIOGRAPHS=data/knee_kl224",
    full_command="make results-radiographs RADIOGRAPHS=data/knee_kl224 RESULTS=--full",
    rows=ROWS,
    cells=_CELLS,
    more_cells=(*(_FEW[name] for name in _MORE_FEW), *_MORE),
    seeds=(0,),
    grade_set="kl",
    checkpoint="best",
    options=OPTIONS,
    more_seeds={0.1: (1, 2)},
    options_at={
        0.05: _WIDER_VIEWS,
        0.1: _WIDER_VIEWS,
        # As many images a batch as where half are unlabeled, and more of them: 14.5 passes through all.
        1.0: ("--data.labeled_per_batch=60", "--fit.steps=1400"),
    },
    code=("dcmt.train", "knee.intake.folders", "knee.data.strata"),
    tables=(
        Table("radiographs", "All methods on the radiographs", _BRIEF, METRICS[:5], brief=True),
        Table("radiographs_10", "10 % of the training patients labeled", tuple(_FEW.values()), METRICS),
        Table("radiographs_100", "All labels", tuple(_ALL.values()), METRICS),
        Table(
            "radiographs_more",
            "5, 25 and 50 % of the training patients labeled",
            _MORE,
            METRICS,
        ),
    ),
    claims=CLAIMS,
    mirror=True,
    per_grade=(0.1, 1.0),
    networks=("student", "teacher", "student + mirror", "teacher + mirror"),
)
