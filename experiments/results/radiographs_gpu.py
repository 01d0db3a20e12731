"""The radiographs at 224 px with larger networks, from random weights: the part that asks for a GPU."""

from __future__ import annotations

from dataclasses import replace

from experiments.results.radiographs import METRICS, NO_MASKS, PUBLISHED_CLIP_KOA, RADIOGRAPHS
from experiments.results.study import Cell, Claim, Row, Table

NETWORKS = {"seresnext50_32x4d": "SE-ResNeXt50", "convnext_tiny": "ConvNeXt-T", "vit_base_patch16_224": "ViT-B/16"}
"""By their names in timm."""


def _rows(backbone: str, title: str) -> tuple[Row, ...]:
    linear = (f"--model.backbone={backbone}", "--model.stage=-1")
    text = (f"--clip.image=timm:{backbone}", "--clip.stage=-1", *NO_MASKS)
    base = ("kl_xray.yaml", "kl_gpu.yaml")
    rows = (
        Row(f"{backbone}-supervised", f"{title}, supervised", (*base, "rows/supervised.yaml"), options=linear),
        Row(f"{backbone}-mean_teacher", f"{title}, mean teacher, mirrored answers", base, options=(*linear, *NO_MASKS)),
        Row(f"{backbone}-clip_koa", f"{title}, CLIP-KOA head", ("dcmt_clip_koa.yaml", "kl_gpu.yaml"), options=text),
    )
    return tuple(replace(row, network="teacher + mirror", family=backbone) for row in rows)


ROWS = tuple(row for backbone, title in NETWORKS.items() for row in _rows(backbone, title))


def _claims(backbone: str, title: str) -> tuple[Claim, ...]:
    few = {kind: Cell(f"{backbone}-{kind}", 0.1) for kind in ("supervised", "mean_teacher", "clip_koa")}
    start = f"{title}, kappa at 10 %:"
    return (
        Claim(
            f"{start} the mean teacher with mirrored answers above supervised",
            "kappa",
            few["mean_teacher"],
            few["supervised"],
            rule="interval",
        ),
        Claim(f"{start} CLIP-KOA head above supervised", "kappa", few["clip_koa"], few["supervised"], rule="interval"),
        *(
            Claim(
                f"{title}, {kind}: accuracy with all labels above what CLIP-KOA printed for this split",
                "accuracy",
                Cell(few[kind].row, 1.0),
                PUBLISHED_CLIP_KOA,
            )
            for kind in few
        ),
    )


_FEW, _ALL = (tuple(Cell(row.name, fraction) for row in ROWS) for fraction in (0.1, 1.0))

RADIOGRAPHS_GPU = replace(
    RADIOGRAPHS,
    name="radiographs_gpu",
    title="Few labels on real radiographs, larger networks at 224 px from random weights",
    command="make results-radiographs-gpu RADIOGRAPHS=data/knee_kl224",
    full_command="make results-radiographs-gpu RADIOGRAPHS=data/knee_kl224",
    rows=ROWS,
    cells=(*_FEW, *_ALL),
    more_cells=(),
    more_seeds={},
    options=(),
    options_at={1.0: ("--data.labeled_per_batch=64",)},  # as many images a batch as where 32 are unlabeled
    tables=(Table("radiographs_gpu", "Larger networks on the radiographs", (*_FEW, *_ALL), METRICS[:5], brief=True),),
    claims=tuple(claim for backbone, title in NETWORKS.items() for claim in _claims(backbone, title)),
)
