"""Graders without end-to-end training: ``dcmt zeroshot`` and ``dcmt probe``.

Both write a run folder with one network, the teacher, at step 0, so that evaluate, predict, attention and compare work as for
any run. Zero-shot: a pretrained CLIP model matches images to the grades' texts. Probe: logistic regression on the embeddings
of a frozen image tower (the third row of Chavoshi et al.), or on the features of the image encoder of an image-text run.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_koa.model import ClipGrader
from clip_koa.probe import ProbeGrader, embeddings_of, fit_linear_probe, regression
from dcmt.commands.evaluate import evaluate_command
from dcmt.config import GraderConfig
from dcmt.network import GradingNetwork
from dcmt.start import start_from_pairs
from dcmt.train import build_grader, prompts_used
from dcmt.trained.loaded import refuse_trained_images
from knee.data.prepare import KneeData, load_knee_data
from knee.engine.launch import run_path, split_options
from knee.engine.lock import RunLock
from knee.engine.options import asks_for_help, config_paths, make_parser, read_config
from knee.engine.record import record_data, run_state
from knee.engine.run import RunFolder, create_run, is_trained, removed_unless_begun
from knee.engine.training import start
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.metrics import grading_metrics
from knee.nn.padding import as_input

log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Frozen = ClipGrader | GradingNetwork
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)


def zeroshot_command(arguments: Sequence[str]) -> int:
    """``dcmt zeroshot``: grade with an untrained CLIP model and prompts."""
    options, config = _read(arguments, "zeroshot")
    if config is None:
        return 0
    device = start(config.fit)
    with _prepared(config, options, "zeroshot") as (grader, run, data):
        log.info(
            f"zero-shot: {config.clip.image} without training, on {device}, with the input normalisation of its weights"
        )
        _keep(run, grader, config, data)
        return _evaluate(run, options, config.fit.device)


def probe_command(arguments: Sequence[str]) -> int:
    """``dcmt probe``: a linear classifier on the embeddings of a frozen image tower, or of the run in ``model.start``."""
    options, config = _read(arguments, "probe")
    if config is None:
        return 0
    device = start(config.fit)
    with _prepared(config, options, "probe") as (grader, run, data):
        if config.model.start and not start_from_pairs(grader, config, data):
            raise UserError(
                f"model.start: {config.model.start} is not an image-text run; a probe reads the encoder of one, and train.py "
                "continues from a grader"
            )
        grader.to(device)
        probe = fit_probe(grader, data, device=device, inverse_penalty=options.inverse_penalty)
        _keep(run, probe, config, data)
        return _evaluate(run, options, config.fit.device)


def fit_probe(
    grader: Frozen, data: KneeData, *, device: torch.device, inverse_penalty: float | None
) -> ProbeGrader | GradingNetwork:
    """The probe on the labeled training images; the penalty is given, or chosen on the validation images."""

    def embedded(rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        images = _images(data, rows, device)
        found = _features_of(grader, images) if isinstance(grader, GradingNetwork) else embeddings_of(grader, images)
        return found, data.grades[rows]

    def fit(penalty: float) -> ProbeGrader | GradingNetwork:
        count = data.grade_set.count
        if not isinstance(grader, GradingNetwork):
            return fit_linear_probe(grader, embeddings, grades, count=count, inverse_penalty=penalty)
        fitted = copy.deepcopy(grader)
        weight, bias = regression(embeddings, grades, count=count, inverse_penalty=penalty)
        fitted.classifier.load_state_dict({"weight": weight, "bias": bias})
        return fitted

    embeddings, grades = embedded(data.labeled)
    log.info(f"embedded {len(grades)} labeled images in {embeddings.shape[1]} dimensions")
    validation = data.rows("val")[data.grades[data.rows("val")] >= 0]
    if inverse_penalty is not None or not len(validation):
        penalty = 1.0 if inverse_penalty is None else inverse_penalty
        return fit(penalty)
    unseen, known = embedded(validation)
    probes = {penalty: fit(penalty) for penalty in PENALTIES}
    found = {
        penalty: grading_metrics(_logits(probe, unseen).softmax(1).numpy(), known, data.grade_set)
        for penalty, probe in probes.items()
    }
    metric = data.grade_set.best_metric
    if any(np.isnan(values[metric]) for values in found.values()):
        log.info(f"{metric} is undefined on these {len(known)} validation images, so the penalty is chosen by accuracy")
        metric = "accuracy"
    for penalty, values in found.items():
        log.info(f"inverse penalty {penalty:g}: {metric} {values[metric]:.3f} on {len(known)} validation images")
    return probes[max(PENALTIES, key=lambda penalty: (found[penalty][metric], -penalty))]


@torch.no_grad()
def _features_of(network: GradingNetwork, batches: Iterator[Tensor]) -> NDArray[np.float32]:
    """What the classifier of a network sees: (N, C)."""
    found: NDArray[np.float32] = torch.cat([network.eval().pooled(images).float().cpu() for images in batches]).numpy()
    return found


@torch.no_grad()
def _logits(probe: ProbeGrader | GradingNetwork, embeddings: NDArray[np.float32]) -> Tensor:
    classifier = probe.classifier
    logits: Tensor = classifier(torch.from_numpy(embeddings).to(classifier.weight.device)).cpu()
    return logits


def _images(data: KneeData, rows: Rows, device: torch.device) -> Iterator[Tensor]:
    for images, _ in data.loader(rows):
        yield as_input(images.to(device))


def _read(
    arguments: Sequence[str], name: str
) -> tuple[argparse.Namespace, GraderConfig] | tuple[argparse.Namespace, None]:
    """The command's own options, and the config from all others; no config for --help."""
    parser = argparse.ArgumentParser(prog=f"dcmt {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/CONFIG-" + name + ")")
    parser.add_argument(
        "--trained-on", action="store_true", help="allow --split train, although the classifier was fitted to it"
    )
    if name == "probe":
        parser.add_argument("--inverse-penalty", type=float, help="C of the regression (default: by validation)")
    options, rest = parser.parse_known_args(list(arguments))
    if asks_for_help(rest):
        log.info(
            f"{make_parser(GraderConfig, program=f'dcmt {name}').format_help()}\nin addition:\n{parser.format_help()}"
        )
        return options, None
    rest, resume = split_options(rest)
    if resume is not None:
        raise UserError(f"dcmt {name} cannot be resumed; run it again without --resume")
    config = read_config(GraderConfig, rest, program=f"dcmt {name}")
    of_pairs = name == "probe" and config.model.head == "linear" and bool(config.model.start)
    if config.model.head != "text" and not of_pairs:
        start = ", or an image-text run by --model.start" if name == "probe" else ""
        raise UserError(f"dcmt {name} needs an image tower; give a config with model.head: text{start}")
    if config.model.start and not of_pairs:
        raise UserError(
            f"dcmt {name} uses the pretrained weights of the image tower, not those of the run in model.start; remove "
            "model.start (only train.py starts from a run)"
        )
    if name == "probe" and options.inverse_penalty is not None and not options.inverse_penalty > 0:
        raise UserError(f"--inverse-penalty is {options.inverse_penalty:g}; it must be above 0")
    stem = "-".join(path.stem for path in config_paths(rest)) or "clip"
    if not of_pairs:  # pretrained weights need the input normalisation they were trained with
        config = replace(config, model=replace(config.model, normalise="fixed"))
    options.out = options.out or run_path(config.runs, f"{config.name or stem}-{name}")
    refuse_trained_images(options.out, name, options.split, allowed=options.trained_on)
    return options, config


@contextmanager
def _prepared(
    config: GraderConfig, options: argparse.Namespace, kind: str
) -> Iterator[tuple[Frozen, RunFolder, KneeData]]:
    """Grader, locked run folder and data; the folder is removed if the command fails before it begins."""
    # First build the grader, which may fail without a file or network, so that no incomplete run folder is left behind.
    grader = build_grader(config, load_grade_set(config.data.grade_set))
    assert isinstance(grader, Frozen)
    run = create_run(options.out, config, kind=kind)
    with removed_unless_begun(run), RunLock(run.path):
        data = load_knee_data(
            config.data, rejected=run.local / "rejected.csv", salt_folder=run.local, graded=is_trained(kind)
        )
        record_data(run, data)
        yield grader.eval(), run, data


def _keep(run: RunFolder, network: nn.Module, config: GraderConfig, data: KneeData) -> None:
    state = run_state(data, best_metric=f"val_teacher/{data.grade_set.best_metric}")
    run.checkpoints.save(0, {"teacher": network}, {}, state | prompts_used(config, data.grade_set, None))


def _evaluate(run: RunFolder, options: argparse.Namespace, device: str) -> int:
    chosen = {
        "run": run.path,
        "checkpoint": "last",
        "device": device,
        "flip": True,
        "flip_tta": False,
        "prior_correction": False,
    }
    chosen["external_model"] = True  # the model comes from the user's own config
    return evaluate_command(argparse.Namespace(**chosen, split=options.split, trained_on=options.trained_on))
