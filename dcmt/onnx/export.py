"""``dcmt export``: write a trained network as one ONNX file, checked against the network that it was made from."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import dcmt
from dcmt.onnx.card import KEY, Card
from dcmt.onnx.runtime import require, session_of
from dcmt.onnx.simplify import merge_repeated
from dcmt.trained.loaded import LoadedRun, load_run
from knee.attention import attention_map, soft_threshold
from knee.engine.options import config_from_values
from knee.engine.run import open_run
from knee.errors import UserError
from knee.evaluation.familiarity import Familiarity, thumbnails
from knee.grades import decide
from knee.io.files import whole_file
from knee.nn.padding import as_input, content_of

log = logging.getLogger(__name__)
OPSET = 17
MOST_DIFFERENCE = 1e-4
_CHECKED = (1, 3)
"""Sizes of the batches that are compared."""


class Exported(NamedTuple):
    """A network to be written, and what its file says about itself."""

    network: nn.Module
    outputs: tuple[str, ...]
    card: Card
    slope: float = 1.0
    """The steepest slope of f as a function of x."""
    loaded: LoadedRun | None = None
    """The grader's run."""


class GraderOutputs(nn.Module):
    """Prepared images (B, 1, S, S) uint8 → probabilities (B, K), attention x and f (B, S, S), distance (B,) if known."""

    center: Tensor
    whitening: Tensor
    means: Tensor

    def __init__(self, loaded: LoadedRun, name: str, familiarity: Familiarity | None) -> None:
        super().__init__()
        self.grader, self.bare = loaded.networks[name], loaded.bare[name]
        self.decision = loaded.grade_set.decision
        attention = loaded.config.attention
        self.soft = partial(soft_threshold, sharpness=attention.sharpness, threshold=attention.threshold)
        self.familiar = familiarity is not None
        if familiarity is not None:
            for part in ("center", "whitening", "means"):
                self.register_buffer(part, torch.from_numpy(np.asarray(getattr(familiarity, part), np.float32)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of ``Exported.outputs``."""
        marked = as_input(images)
        grading = self.grader(marked)
        probabilities = grading.logits.float().softmax(1)
        size = (int(images.shape[2]), int(images.shape[3]))
        called = decide(probabilities, self.decision)
        x = attention_map(grading.class_maps, called, size, content=content_of(marked))
        found = (probabilities, x, self.soft(x) * (x.amax((1, 2), keepdim=True) > 0))
        return (*found, self._distance(marked)) if self.familiar else found

    def _distance(self, marked: Tensor) -> Tensor:
        """Distance from the nearest class of the training images, as ``Familiarity.distance``."""
        features = torch.cat([self.bare.pooled(marked).float(), thumbnails(marked)], 1)  # type: ignore[operator]
        white = (features - self.center) @ self.whitening
        return (white[:, None] - self.means).square().sum(2).amin(1).sqrt()


class MaskOutputs(nn.Module):
    """Prepared images (B, 1, S, S) uint8 → the probability of cartilage (B, S, S)."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """The probability of each pixel."""
        return (self.segmenter(images.float() / 255).sigmoid(),)


def export_command(options: argparse.Namespace) -> int:
    """Write ``--out`` and compare it with the network; a file that differs is not written."""
    require("onnx", "onnxruntime")
    found = _of_segmenter(options) if open_run(options.run)[1]["kind"] == "segmenter" else _of_grader(options)
    content = onnx_bytes(found)
    difference = largest_difference(found, content)
    log.info(f"largest difference from torch in float32: {difference:.2g} (at most {MOST_DIFFERENCE:g})")
    if not difference <= MOST_DIFFERENCE:
        raise UserError(
            f"the file would differ from the network by {difference:.2g}, more than {MOST_DIFFERENCE:g}; nothing was written"
        )
    if options.int8 is not None:
        content, found = _in_int8(found, content, split=options.int8)
    with whole_file(options.out, force=options.force) as scratch:
        scratch.write_bytes(content)
    log.info(
        f"{found.card.network} written to {options.out}: {len(content) / 2**20:.1f} MiB, opset {OPSET}, outputs "
        f"{', '.join(found.outputs)}, SHA-256 {hashlib.sha256(content).hexdigest()}"
    )
    log.info(found.card.research_use)
    return 0


def _in_int8(found: Exported, content: bytes, *, split: str) -> tuple[bytes, Exported]:
    """The file in int8, with what that costs on the console: on random images, and on a ``split`` unless that is empty."""
    from dcmt.onnx.int8 import cost_on, probability_difference, quantized

    if split and found.loaded is None:
        raise UserError("the cost of int8 on a split is that of grades; give --int8 alone for a segmenter")
    found = found._replace(card=replace(found.card, int8=True))
    smaller = quantized(_with_card(content, found.card))
    before, after = session_of(content), session_of(smaller)
    difference = probability_difference(before, after, [_images(count, found.card.image_size) for count in _CHECKED])
    if not np.isfinite(difference):
        raise UserError("the outputs in int8 are not finite numbers; nothing was written: leave out --int8")
    log.info(f"int8: largest difference of a probability on random images {difference:.2g}")
    if split and found.loaded is not None:
        log.info(f"int8: {cost_on(found.loaded, split, before, after)}")
    return smaller, found


def _of_grader(options: argparse.Namespace) -> Exported:
    loaded = load_run(
        options.run,
        checkpoint=options.checkpoint,
        device="cpu",
        flip_tta=options.flip_tta,
        external_model=options.external_model,
    )
    name = "student" if options.student else "teacher"
    if name not in loaded.networks:
        raise UserError(f"{options.run} has no {name}; leave out --student")
    # Familiarity is measured with the teacher, which the student's file does not contain.
    reference = loaded.reference if name == "teacher" else None
    familiarity = reference.familiarity if reference else None
    template, data, config = loaded.run.template(), loaded.config.data, loaded.config
    card = Card(
        kind="grader",
        network=name,
        grade_set=loaded.grade_set.name,
        grades=list(loaded.grade_set.names),
        image_size=data.image_size,
        percentiles=[float(value) for value in data.percentiles],
        mirror_side=data.mirror_side,
        template=[] if template is None else [[round(float(value), 6) for value in row] for row in template],
        modalities=list(reference.modalities) if reference else [],
        distances=[] if familiarity is None else [round(float(value), 4) for value in familiarity.distances],
        farthest=0.0 if familiarity is None else familiarity.threshold,
        temperature=loaded.temperature(name) or 1.0,
        flip_tta=loaded.flip_tta,
        severest=loaded.pools_severest,
        threshold=loaded.config.attention.threshold,
        decision=loaded.grade_set.decision,
        **_origin(
            loaded.checkpoint,
            name,
            options,
            model=config.clip.image if config.model.head == "text" else config.model.backbone,
        ),
    )
    outputs = ("probabilities", "attention_x", "attention_f", *(() if familiarity is None else ("distance",)))
    slope = max(1.0, loaded.config.attention.sharpness / 4)
    return Exported(GraderOutputs(loaded, name, familiarity).eval(), outputs, card, slope, loaded)


def _of_segmenter(options: argparse.Namespace) -> Exported:
    from segmentation.config import SegmenterConfig
    from segmentation.train import load_segmenter

    if options.student or options.flip_tta:
        raise UserError(f"{options.run} is a segmenter's run: leave out --student and --flip-tta")
    run, values = open_run(options.run)
    values.pop("kind")
    config: SegmenterConfig = config_from_values(SegmenterConfig, values, where=str(run.config))
    segmenter, checkpoint = load_segmenter(run, config, external_model=options.external_model)
    card = Card(
        kind="segmenter",
        network="segmenter",
        grade_set="",
        grades=[],
        image_size=config.data.image_size,
        percentiles=[float(value) for value in config.data.percentiles],
        mirror_side=config.data.mirror_side,
        template=[],
        modalities=[],
        distances=[],
        farthest=0.0,
        temperature=1.0,
        flip_tta=False,
        severest=False,
        **_origin(checkpoint, "segmenter", options, model=config.unet.encoder),
    )
    return Exported(MaskOutputs(segmenter).eval(), ("mask",), card)


def _origin(checkpoint: Any, name: str, options: argparse.Namespace, *, model: str) -> dict[str, Any]:
    unknown = f"not stated; it depends on the training data and on the weights that {model} started from"
    return {
        "opset": OPSET,
        "weights_sha256": checkpoint.state["sha256"][f"{name}.safetensors"],
        "step": checkpoint.step,
        "license": options.license or unknown,
        "version": dcmt.__version__,
    }


def onnx_bytes(found: Exported) -> bytes:
    """The ONNX file of a network, with its metadata. Raises UserError if ONNX has no operator for a part of it."""
    names = ("image", *found.outputs)
    stream = io.BytesIO()
    try:
        # torch's newer exporter takes minutes where this one takes seconds, and needs two more packages.
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                found.network,
                (_images(2, found.card.image_size),),
                stream,  # type: ignore[arg-type]  # this exporter also writes to streams
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(found.outputs),
                dynamic_axes={name: {0: "batch"} for name in names},
            )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(
            f"this network cannot be written as ONNX opset {OPSET} ({type(error).__name__}: {reason[:200]}); use the run with "
            "dcmt predict, or train another backbone"
        ) from error
    return _with_card(stream.getvalue(), found.card)


def _with_card(content: bytes, card: Card) -> bytes:
    import onnx

    model = onnx.load_model_from_string(content)
    merge_repeated(model)
    model.doc_string = card.research_use
    texts = {KEY: card.text(), "research_use": card.research_use, "license": card.license}
    onnx.helper.set_model_props(model, texts)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def largest_difference(found: Exported, content: bytes) -> float:
    """Between the outputs of ONNX Runtime and of torch on random images, also letterboxed ones, in batches of two sizes.

    A distance has no upper bound, so its difference is relative; that of f is divided by its steepest slope, ω/4, by which it
    multiplies the rounding errors of x.
    """
    run, scale = session_of(content), dict.fromkeys(found.outputs, 1.0) | {"attention_f": found.slope}
    largest = 0.0
    for count in _CHECKED:
        images = _images(count, found.card.image_size)
        with torch.no_grad():
            wanted = found.network(images)
        for name, one, other in zip(found.outputs, run(images.numpy()), wanted, strict=True):
            apart = np.abs(one - other.numpy()) / scale[name]
            largest = max(largest, float((apart / other.numpy().clip(1) if name == "distance" else apart).max()))
    return largest


def _images(count: int, size: int) -> Tensor:
    """Smooth random images (count, 1, S, S) uint8; every second one with black bars, as an image that is not square has."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, 1, 9, 9, generator=generator)
    images = (1 + 254 * nn.functional.interpolate(coarse, (size, size), mode="bilinear")).to(torch.uint8)
    images[::2, :, : size // 5] = 0
    images[::2, :, size - size // 5 :] = 0
    return images
