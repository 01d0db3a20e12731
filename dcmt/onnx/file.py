"""An exported network, opened: ONNX Runtime in place of torch, which is not imported."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcmt.onnx.card import Card, read_card
from dcmt.onnx.graph import check_graph
from dcmt.onnx.reader import Preparation
from dcmt.onnx.runtime import MOST_BYTES, open_session
from knee.errors import UserError

_BATCH = 32


class ExportedNetwork:
    """A file of ``dcmt export`` of a grader, opened. Raises UserError if it is not one."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size if path.is_file() else 0
        if not 0 < size < MOST_BYTES:
            raise UserError(f"{path} is not a file of dcmt export")
        try:
            check_graph(content := path.read_bytes())
            self.sha256 = hashlib.sha256(content).hexdigest()
            self._session = open_session(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        properties: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.card: Card = read_card(properties, str(path))
        outputs = [output.name for output in self._session.get_outputs()]
        if self.card.kind != "grader" or outputs[:3] != ["probabilities", "attention_x", "attention_f"]:
            raise UserError(f"{path} is a {self.card.kind} with the outputs {', '.join(outputs)[:80]}, not a grader")
        self._wanted = ["probabilities", *(["distance"] if "distance" in outputs else [])]

    def grade(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Prepared images (n, S, S) → probabilities (n, K), and distances (n,) from the training images, NaN if unknown."""
        probabilities, *distances = self._run(images, self._wanted)
        return probabilities, distances[0] if distances else np.full(len(images), np.nan, np.float32)

    def attend(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Prepared images (n, S, S) → probabilities (n, K), and x of the predicted grade (n, S, S) in [0, 1]."""
        probabilities, x = self._run(images, ["probabilities", "attention_x"])
        if x.shape != images.shape or not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise UserError("the maps of the network are not finite numbers from 0 to 1; export the run again")
        return probabilities, x

    def _run(self, images: NDArray[np.uint8], wanted: list[str]) -> list[NDArray[np.float32]]:
        """The outputs ``wanted`` for all images; the first of them are the probabilities, which are checked."""
        found = []
        for start in range(0, len(images), _BATCH):
            batch = np.ascontiguousarray(images[start : start + _BATCH, None])
            found.append(self._session.run(wanted, {"image": batch}))
        probabilities, *others = (np.concatenate(outputs) for outputs in zip(*found, strict=True))
        if probabilities.shape != (len(images), len(self.card.grades)) or not np.isfinite(probabilities).all():
            raise UserError(
                "the outputs of the network are not finite probabilities of its grades; export the run again"
            )
        return [probabilities, *others]

    @property
    def preparation(self) -> Preparation:
        """How images are prepared for it."""
        low, high = self.card.percentiles
        template = np.array(self.card.template, np.float32) if self.card.template else None
        return Preparation(self.card.image_size, (low, high), self.card.mirror_side, template)
