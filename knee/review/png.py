"""Write cases as PNG pictures with a legend, on the original pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from knee.images.original import Original
from knee.images.read import write_png
from knee.review.cases import ReviewCase
from knee.review.page.html import ReviewRun
from knee.review.picture import case_picture
from knee.review.writer import NETWORKS, Exported, Writer, making


@dataclass
class PngWriter(Writer):
    """Writes one picture for each network, ``CASE_NETWORK.png``, with a legend."""

    folder: Path
    run: ReviewRun
    force: bool = False
    ending = ".png"

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write both pictures of a case."""
        if original.problem:
            return Exported()
        with making("png"):
            pictures = {
                self.folder / f"{case.case}_{network}.png": case_picture(
                    original.grey, case.attention_on(original, network), case, self.run, network
                )
                for network in NETWORKS
            }
        for path, picture in pictures.items():
            write_png(path, picture.pixels, force=self.force)
        return Exported(tuple(pictures))
