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
    """Writes one picture for each map, ``CASE_student.png``, ``CASE_teacher.png`` and ``CASE_evidence.png``, with a legend."""

    folder: Path
    run: ReviewRun
    force: bool = False
    ending = ".png"

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write the pictures of a case."""
        if original.problem:
            return Exported()
        with making("png"):
            maps = {network: case.attention_on(original, network) for network in NETWORKS}
            if (evidence := case.evidence_on(original)) is not None:
                maps["evidence"] = evidence
            pictures = {
                self.folder / f"{case.case}_{name}.png": case_picture(original.grey, x, case, self.run, name)
                for name, x in maps.items()
            }
        for path, picture in pictures.items():
            write_png(path, picture.pixels, force=self.force)
        return Exported(tuple(pictures))
