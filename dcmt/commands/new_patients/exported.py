"""A file of ``dcmt export`` as a model for exports of maps and grades."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dcmt.commands.new_patients.export import MOST_PX, Model, prepared_chunks
from dcmt.onnx.file import ExportedNetwork
from dcmt.onnx.reader import PreparedImages
from knee.errors import UserError
from knee.review.cases import CaseFacts, NetworkView, ReviewCase
from knee.review.page.html import ReviewRun
from knee.review.writer import NETWORKS


def model_of_file(path: Path, network: ExportedNetwork, reader: PreparedImages, options: argparse.Namespace) -> Model:
    """The file as a model for exports of what ``reader`` read; objects are identified by the hash of the whole file.

    Raises UserError for an unknown network.
    """
    card = network.card
    if card.network not in NETWORKS:
        raise UserError(
            f"{path} holds the network {card.network!r:.80}, not {' or '.join(NETWORKS)}; export the run again"
        )
    run = ReviewRun(path.stem, network.sha256[:16], card.scale, threshold=card.threshold, severest=card.severest)
    return Model(run, card.network, path.resolve(), partial(_chunks, network, reader, options=options))


def _chunks(
    network: ExportedNetwork,
    before: PreparedImages,
    facts: Sequence[CaseFacts],
    paths: Sequence[Path],
    *,
    options: argparse.Namespace,
) -> Iterator[list[ReviewCase]]:
    """The one network of the file stands for both; nothing compares them in these formats."""
    reader = PreparedImages(network.preparation, grade_anyway=options.grade_anyway, most_px=MOST_PX, before=before)
    for images, placed in prepared_chunks(reader, facts, paths):
        cases = []
        for image, fact, shares, x in zip(images, placed, *network.attend(images), strict=True):
            view = NetworkView(shares.astype(np.float64), x, scaled=True, decision=network.card.decision)
            cases.append(ReviewCase(image=image, student=view, teacher=view, flip_disagreement=np.nan, **vars(fact)))
        yield cases
