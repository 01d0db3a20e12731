"""Few labels on real radiographs (doi:10.17632/56rmx5bjcr.1), from random weights; by grade as Chavoshi et al."""

from __future__ import annotations

from dataclasses import replace

from experiments.results.study import Cell, Claim, Network, Row, Rule, Study, fast_precision, grid

TTA: Network = "teacher + TTA"
MEDIAN: Network = "teacher + TTA, median"
PUBLISHED_CLIP_KOA = 0.7186
# A ResNet-18 at 112 px: 16 epochs, flips, affine, gamma, flip TTA; measured by other code on this split.
_BASELINE = {0.1: {"accuracy": 0.531, "kappa": 0.618}, 1.0: {"accuracy": 0.628, "kappa": 0.734}}

# There are no cartilage masks.
_NO_MASKS = ("--loss.attention=0", "--loss.attention_consistency=0")
# 10 % of the labels are 576 images, which a network overfits soon: stronger augmentation.
_FEW_LABELS = (
    "--views.rotate_degrees=10",
    "--views.translate=0.07",
    "--views.zoom_out=0.12",
    "--views.zoom_in=0.15",
)
_MEAN_TEACHER = ("kl_xray.yaml", "rows/mean_teacher.yaml")
_SUPERVISED = ("kl_xray.yaml", "rows/supervised.yaml")
_CONSISTENCY = ("--loss.probability_consistency=10",)
_FLIP_LOSSES = ("--loss.symmetry=true", "--loss.flip_consistency=10")


def self_training_rows(configs: tuple[str, ...], *, networks: int, steps: int = 0) -> tuple[Row, Row]:
    """One round from the mean of so many networks, and its twin without unlabeled images; ``steps`` with targets, if given."""
    rounds = ("--rounds=1", f"--networks={networks}", *([f"--student-steps={steps}"] if steps else []))
    title, twin = "Self-training, targets of labeled images only", "self_training_twin"
    return (
        Row("self_training", "Self-training", configs, TTA, rounds=rounds, kind="semi", twin=twin),
        Row(twin, title, configs, TTA, rounds=(*rounds, "--twin"), kind="twin"),
    )


ROWS = (
    Row("supervised", "Supervised", _SUPERVISED, TTA),
    Row("mean_teacher", "Mean teacher", _MEAN_TEACHER, TTA, _CONSISTENCY, kind="semi"),
    Row("mean_teacher_mirror", "Mean teacher, flip-averaged targets", ("kl_xray.yaml",), TTA, _NO_MASKS, kind="semi"),
    Row(
        "clip_koa",
        "Mean teacher, CLIP-KOA head",
        ("dcmt_clip_koa.yaml",),
        TTA,
        _NO_MASKS,
        kind="semi",
        twin="clip_koa_supervised",
    ),
    # How much of the row above is due to its head, not to unlabeled images:
    Row(
        "clip_koa_supervised",
        "Supervised, CLIP-KOA head",
        ("dcmt_clip_koa.yaml",),
        TTA,
        (*_NO_MASKS, "--loss.probability_consistency=0", "--data.unlabeled_per_batch=0"),
        kind="twin",
    ),
    # and to its flip losses.
    Row(
        "mean_teacher_flip",
        "Mean teacher, flip losses",
        _MEAN_TEACHER,
        TTA,
        (*_CONSISTENCY, *_FLIP_LOSSES),
        kind="semi",
    ),
    *self_training_rows(_SUPERVISED, networks=3),
)

_MAIN = ("supervised", "mean_teacher_mirror", "clip_koa")
_MORE = ("mean_teacher", "clip_koa_supervised", "mean_teacher_flip", "self_training", "self_training_twin")
_OTHER_FRACTIONS = (0.05, 0.25, 0.5)


def _claim(metric: str, first: str, second: str = "supervised", rule: Rule = "none", *, at: float = 0.1) -> Claim:
    return Claim(metric, Cell(first, at), Cell(second, at), rule)


def _above_baseline(row: str, at: float, metric: str) -> Claim:
    return Claim(metric, Cell(row, at), _BASELINE[at][metric], source="ResNet-18")


def median_gain(row: str, at: float) -> Claim:
    """What calling the median instead of the likeliest grade adds to kappa."""
    return Claim("kappa", Cell(row, at), Cell(row, at), "interval", networks=(MEDIAN, TTA))


def _above_clip_koa(row: str) -> Claim:
    """The paper's accuracy on this split, with towers pretrained on 400 million pairs."""
    return Claim("accuracy", Cell(row, 1.0), PUBLISHED_CLIP_KOA, source="Jeong & Lee 2025, pretrained towers")


CLAIMS = (
    _claim("kappa", "mean_teacher", rule="interval"),
    _claim("kappa", "clip_koa", rule="interval"),
    _claim("kappa", "mean_teacher_flip", rule="interval"),
    _claim("kappa", "mean_teacher_mirror", rule="interval"),
    _claim("kappa", "mean_teacher_mirror")._replace(networks=("teacher", "teacher")),
    _claim("macro_f1", "mean_teacher_mirror"),
    _claim("macro_f1", "clip_koa"),
    _claim("macro_f1", "mean_teacher_flip"),
    *(
        _claim(metric, "clip_koa_supervised", second)
        for second in ("supervised", "mean_teacher_mirror")
        for metric in ("kappa", "macro_f1")
    ),
    _claim("kappa", "clip_koa", "clip_koa_supervised"),
    _claim("kappa", "mean_teacher_mirror", "mean_teacher"),
    _claim("kappa", "mean_teacher_flip", "mean_teacher"),
    *(
        _claim(metric, "self_training", second, "interval" if metric == "kappa" else "none")
        for second in ("supervised", "self_training_twin")
        for metric in ("kappa", "macro_f1")
    ),
    *(
        _above_baseline(row, at, metric)
        for row, at in (("supervised", 0.1), ("clip_koa", 0.1), ("mean_teacher_mirror", 0.1), ("supervised", 1.0))
        for metric in ("accuracy", "kappa")
    ),
    *(
        _claim(metric, row, at=fraction)
        for fraction in _OTHER_FRACTIONS
        for metric in ("kappa", "macro_f1")
        for row in ("mean_teacher_mirror", "clip_koa")
    ),
    *(_claim(metric, row, at=1.0) for metric in ("kappa", "macro_f1") for row in ("mean_teacher", "clip_koa")),
    _above_clip_koa("clip_koa"),
    _claim("accuracy", "supervised", at=1.0)._replace(networks=(TTA, "teacher")),
    _claim("flip_changed", "clip_koa", at=1.0)._replace(networks=("teacher", "teacher")),
    *(
        _claim("kappa", row, second, "interval")._replace(networks=(MEDIAN, MEDIAN))
        for row, second in (
            ("mean_teacher_mirror", "supervised"),
            ("self_training", "supervised"),
            ("self_training", "self_training_twin"),
        )
    ),
    *(median_gain(row, 0.1) for row in ("supervised", "mean_teacher_mirror")),
    median_gain("supervised", 1.0),
    *(
        Claim(metric, Cell("supervised", 1.0), goal, networks=(MEDIAN, MEDIAN), source="KneeGrade, goal")
        for metric, goal in (("kappa", 0.753), ("balanced_accuracy", 0.644), ("recall_1", 0.25))
    ),
)

RADIOGRAPHS = Study(
    name="radiographs",
    title="Few labels on real radiographs, from random weights",
    version=1,
    command="make results-radiographs RADIOGRAPHS=data/knee_kl224 RESULTS=--full",
    grade_set="kl",
    checkpoint="best",
    rows=ROWS,
    runs=(*grid(_MAIN, [0.1], [0]), *grid(("supervised", "mean_teacher", "clip_koa"), [1.0], [0])),
    more_runs=(
        *grid(_MAIN, [0.1], [1, 2]),
        *grid(_MORE, [0.1], [0, 1, 2]),
        *grid(_MAIN, _OTHER_FRACTIONS, [0]),
    ),
    metrics=("accuracy", "kappa", "adjacent", "macro_f1", "ece", "flip_changed", "flip_divergence"),
    claims=CLAIMS,
    networks=("student", "teacher", "student + TTA", TTA, MEDIAN),
    # In shorter runs the methods rank by how fast they learn: with few labels the macro F1 of supervised training
    # rises until step 1,400 to 1,600 (docs/log.md).
    options=("--fit.steps=1600", "--fit.validate_every=200", f"--fit.precision={fast_precision()}"),
    options_at={
        0.05: _FEW_LABELS,
        0.1: _FEW_LABELS,
        # As many images in a batch as where half are unlabeled: 1,400 steps are 14.5 epochs.
        1.0: ("--data.labeled_per_batch=60", "--fit.steps=1400"),
    },
    per_grade=(0.1, 1.0),
)

RADIOGRAPHS_ATTENTION = replace(
    RADIOGRAPHS,
    name="radiographs_attention",
    title="The attention losses on real radiographs, with the joint as the region",
    command="make results-radiographs-attention RADIOGRAPHS=data/knee_kl224",
    rows=(
        Row("supervised", "Supervised", _SUPERVISED, TTA),
        Row(
            "supervised_attention",
            "Supervised, attention loss",
            ("kl_xray.yaml", "rows/supervised_attention.yaml"),
            TTA,
        ),
        Row("dcmt", "DC-MT", ("kl_xray.yaml", "rows/dcmt.yaml"), TTA, ("--loss.teacher_flip=true",), kind="semi"),
    ),
    runs=grid(("supervised", "supervised_attention", "dcmt"), [0.1], [0]),
    more_runs=grid(("supervised", "supervised_attention", "dcmt"), [0.1], [1, 2]),
    metrics=("accuracy", "kappa", "macro_f1", "tiou"),
    claims=(
        *(
            _claim("tiou", row, rule="above")._replace(kind="ratio", bound=3.0, networks=("teacher", "teacher"))
            for row in ("supervised_attention", "dcmt")
        ),
        _claim("kappa", "supervised_attention"),
        _claim("kappa", "dcmt"),
        _claim("kappa", "dcmt", "supervised_attention"),
    ),
    per_grade=(),
)
"""The region is marked by a segmenter that has seen phantom radiographs only (`train.JointPlan`)."""

BACKBONES = {"seresnext50_32x4d": "SE-ResNeXt50", "convnext_tiny": "ConvNeXt-T", "vit_base_patch16_224": "ViT-B/16"}
"""The larger networks by their names in timm, for a GPU."""


def _gpu_rows(backbone: str, title: str) -> tuple[Row, ...]:
    linear = (f"--model.backbone={backbone}", "--model.stage=-1")
    text = (f"--clip.image=timm:{backbone}", "--clip.stage=-1", *_NO_MASKS)
    base = ("kl_xray.yaml", "kl_gpu.yaml")
    return (
        Row(f"{backbone}-supervised", f"{title}, supervised", (*base, "rows/supervised.yaml"), TTA, linear),
        Row(
            f"{backbone}-mean_teacher",
            f"{title}, mean teacher, flip-averaged targets",
            base,
            TTA,
            (*linear, *_NO_MASKS),
        ),
        Row(f"{backbone}-clip_koa", f"{title}, CLIP-KOA head", ("dcmt_clip_koa.yaml", "kl_gpu.yaml"), TTA, text),
    )


_GPU_ROWS = tuple(row for backbone, title in BACKBONES.items() for row in _gpu_rows(backbone, title))

RADIOGRAPHS_GPU = replace(
    RADIOGRAPHS,
    name="radiographs_gpu",
    title="Few labels on real radiographs, larger networks at 224 px from random weights",
    command="make results-radiographs-gpu RADIOGRAPHS=data/knee_kl224",
    rows=_GPU_ROWS,
    runs=grid([row.name for row in _GPU_ROWS], [0.1, 1.0], [0]),
    more_runs=(),
    options=(),
    options_at={1.0: ("--data.labeled_per_batch=64",)},  # as many images in a batch as where 32 are unlabeled
    claims=tuple(
        claim
        for backbone in BACKBONES
        for claim in (
            _claim("kappa", f"{backbone}-mean_teacher", f"{backbone}-supervised", "interval"),
            _claim("kappa", f"{backbone}-clip_koa", f"{backbone}-supervised", "interval"),
            *(_above_clip_koa(f"{backbone}-{method}") for method in ("supervised", "mean_teacher", "clip_koa")),
        )
    ),
)
