"""``dcmt retrieve`` and ``dcmt embed``: what the towers of an image-text run are worth, and their embeddings."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dcmt.commands.new_patients.graded_files import find_slices
from dcmt.onnx.reader import Chunk, Rejected
from dcmt.trained.loaded import LoadedRun
from dcmt.trained.prediction import ImageReader, image_loader
from image_text.config import ImageTextConfig
from image_text.embed import embed_images, embed_pairs
from image_text.joint.build import further_by_input, grades_by_input, table_cells, table_grades
from image_text.joint.model import JointModel
from image_text.reports import Reports, read_reports
from image_text.retrieval import DIRECTIONS, Pairs, retrieval, table_lines
from image_text.sheet import sheet_figure
from image_text.table import column_names, require_columns
from image_text.towers import TwoTowers
from image_text.train import KIND, build_towers, load_reports
from knee.data.datasets import images_to
from knee.data.prepare import KneeData, load_knee_data
from knee.engine.checkpoint import Checkpoint
from knee.engine.device import choose_device, flush_denormals
from knee.engine.options import config_from_values
from knee.engine.run import RunFolder, open_run, other_split, require_paths
from knee.engine.training import place
from knee.errors import UserError
from knee.evaluation.figures import save_figure
from knee.grades import load_grade_set
from knee.io.files import refuse_existing, whole_file, write_json
from knee.nn import processes

log = logging.getLogger(__name__)
_CHUNK = 64


@dataclass(frozen=True)
class LoadedTowers:
    """An image-text run opened for inference: the teacher's towers, in eval mode on the device."""

    run: RunFolder
    config: ImageTextConfig
    checkpoint: Checkpoint
    network: TwoTowers
    device: torch.device


def load_towers(path: Path, *, checkpoint: str, device: str) -> LoadedTowers:
    """Open an image-text run. The folder may be untrusted: nothing is downloaded and no code is loaded.

    Raises UserError if it is another kind of run, or has no checkpoint.
    """
    flush_denormals()
    run, values = open_run(path)
    kind = values.pop("kind")
    if kind != KIND:
        raise UserError(f"{path} is a run of kind {kind:.80}; this command needs an image-text run (method lumbarclip)")
    config: ImageTextConfig = config_from_values(ImageTextConfig, values, where=str(run.config))
    found = run.checkpoints.best() if checkpoint == "best" else run.checkpoints.latest()[0]
    if found is None:
        raise UserError(f"{path} has no checkpoint yet; train it first: python train.py --resume {path}")
    require_paths(run, config, "data.grade_set")
    network = build_towers(config, grades=load_grade_set(config.data.grade_set).count, fresh=False)
    found.load_network("teacher", network)
    chosen = choose_device(device)
    place({"teacher": network}, chosen, channels_last=config.fit.channels_last)
    return LoadedTowers(run, config, found, network.eval(), chosen)


def load_pairs(loaded: LoadedTowers) -> tuple[KneeData, Reports]:
    """The data on which a run was trained, and its reports. Raises UserError if the split changed since."""
    require_paths(loaded.run, loaded.config, "data.manifest", "data.split")
    local = loaded.run.local
    data = load_knee_data(
        loaded.config.data, rejected=local / "rejected.csv", salt_folder=local, graded=False, of_run=True
    )
    if other_split(loaded.checkpoint.state, data.split.path):
        raise UserError(
            f"{data.split.path} changed since {loaded.run.path} was trained, so its reports may have been trained on; restore "
            f"the split of the run, a copy of which is {loaded.run.local / 'split.csv'}"
        )
    return data, load_reports(loaded.config, data)


def retrieve_command(options: argparse.Namespace) -> int:
    """``dcmt retrieve``: ``retrieval_SPLIT.json``, a sheet, and in ``local/`` the rank of every pair."""
    loaded = load_towers(options.run, checkpoint=options.checkpoint, device=options.device)
    if options.split == "train" and not options.trained_on:
        raise UserError(
            f"{options.run} was trained on the pairs of --split train, so its retrieval there would be too good; use --split "
            "val or test, or add --trained-on"
        )
    data, reports = load_pairs(loaded)
    columns = column_names(",".join(options.covariate), option="--covariate")
    require_columns(data.manifest.table, columns, where=str(data.manifest.path))
    rows = data.split.rows(options.split)
    pairs = embed_pairs(
        loaded.network,
        data,
        reports,
        rows,
        device=loaded.device,
        precision=loaded.checkpoint.precision,
        columns=columns,
    )
    rows = rows[reports.present[rows]]
    config = loaded.config
    found = retrieval(pairs, samples=config.report.bootstrap, seed=config.fit.seed)
    grades = fused_grades(loaded, data, reports, options.split)
    write_json(
        loaded.run.path / f"retrieval_{options.split}.json",
        {"step": loaded.checkpoint.step, "covariates": list(columns), **found, **grades},
    )
    _write_ranks(loaded.run.local / f"retrieval_{options.split}.csv", pairs, data.cases(rows))
    for line in table_lines(found):
        log.info(line)
    picture = loaded.run.figures / f"retrieval_{options.split}.png"
    save_figure(sheet_figure(pairs, data, rows, queries=options.queries), picture)
    if options.show_reports:
        texts = read_reports(data.manifest)
        picture = loaded.run.local / f"retrieval_{options.split}_reports.png"
        save_figure(sheet_figure(pairs, data, rows, queries=options.queries, reports=texts), picture)
        picture.chmod(0o600)
    log.info(f"queries and their first five images: {picture}. Research use only.")
    return 0


def fused_grades(loaded: LoadedTowers, data: KneeData, reports: Reports, split: str) -> dict[str, Any]:
    """Of a joint run, metrics of the grade from the image alone, and apart from it that of the joint transformer.

    The latter comes with the share of the cases that had each modality. Empty for other runs, and without graded cases.
    """
    rows = data.rows(split)
    rows = rows[data.grades[rows] >= 0]
    if not isinstance(loaded.network, JointModel) or not len(rows):
        return {}
    cells = table_cells(loaded.config, data)
    found = grades_by_input(
        loaded.network, data, reports, cells, rows, device=loaded.device, precision=loaded.checkpoint.precision
    )
    used = {"report": float(reports.present[rows].mean()), "table": float((cells.groups[rows] >= 0).mean())}
    shares = " and ".join(f"{name} (of {share:.0%} of the cases)" for name, share in used.items())
    log.info(
        f"grade of {len(rows)} cases from the image alone, as dcmt evaluate: kappa {found['image']['kappa']:.3f}; from image, "
        f"{shares}, which predict does not use: kappa {found['fused']['kappa']:.3f}"
    )
    further = further_by_input(
        loaded.network,
        data,
        reports,
        cells,
        table_grades(loaded.config, data),
        data.split.rows(split),
        device=loaded.device,
        precision=loaded.checkpoint.precision,
    )
    for column, both in further.items():
        log.info(f"{column}: kappa {both['image']['kappa']:.3f} from the image, {both['fused']['kappa']:.3f} from all")
    return {"grades": {**found, "modalities": used, **({"further": further} if further else {})}}


def _write_ranks(path: Path, pairs: Pairs, cases: list[str]) -> None:
    """The rank of each case's own counterpart, in both directions."""
    ranks = {direction: pairs.ranked(direction, np.arange(len(pairs))).rank() for direction in DIRECTIONS}
    pd.DataFrame({"case": cases, **ranks}).to_csv(path, index=False, lineterminator="\n")
    path.chmod(0o600)


class _Chunk(NamedTuple):
    """Of some files: the readable ones, z_I and h_I of these (None without any), and the others with reasons."""

    names: list[str]
    found: tuple[NDArray[np.float64], NDArray[np.float32]] | None
    rejected: list[Rejected]


def embed_command(options: argparse.Namespace) -> int:
    """``dcmt embed``: the embeddings of images in one .npz file."""
    if options.out.suffix != ".npz":
        raise UserError(f"--out {options.out}: write a name that ends with .npz")
    processes.first_decides(refuse_existing, options.out, force=options.force)
    loaded = load_towers(options.run, checkpoint=options.checkpoint, device=options.device)
    paths = list(find_slices(options.images, None))
    # The reader needs the run's template and data options only.
    reader = ImageReader(cast("LoadedRun", loaded), grade_anyway=True)

    def embedded(chunk: Chunk) -> _Chunk:
        names = [str(file.path) for file in chunk.files]
        return _Chunk(names, _embedded(loaded, chunk.images) if names else None, chunk.rejected)

    parts = (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))
    chunks = list(processes.merged(map(embedded, reader.chunks(processes.part_of(parts)))))
    if not processes.is_first():
        return 0
    for path, reason in [one for chunk in chunks for one in chunk.rejected]:
        log.warning(f"warning: {path}: {reason}")
    found = [chunk.found for chunk in chunks if chunk.found is not None]
    if not found:
        raise UserError(f"no image in {options.images} could be read")
    names = [name for chunk in chunks for name in chunk.names]
    arrays: dict[str, Any] = {
        "image": np.array(names),
        "embedding": np.concatenate([shared for shared, _ in found]).astype(np.float32),
        "features": np.concatenate([features for _, features in found]),
    }
    with whole_file(options.out, force=options.force) as scratch, scratch.open("wb") as file:
        np.savez(file, **arrays)
    log.info(
        f"{len(names)} images: embedding {arrays['embedding'].shape} (shared space), features {arrays['features'].shape} "
        f"(before the head): {options.out}"
    )
    return 0


@torch.no_grad()
def _embedded(loaded: LoadedTowers, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """z_I (n, D) and h_I (n, C) of prepared images (n, S, S)."""
    features = [
        loaded.network.image.pooled(images_to(batch, loaded.device)).float().cpu().numpy()
        for batch, _ in image_loader(images)
    ]
    shared = embed_images(loaded.network, image_loader(images), device=loaded.device, precision="fp32")
    return shared, np.concatenate(features)
