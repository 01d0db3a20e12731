"""Write cases as DICOM for the readers' own viewers: on the source's pixels, in new series, marked as research."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID

from knee.images.original import Original
from knee.io.files import whole_file
from knee.review.cases import CaseFacts, ReviewCase
from knee.review.dicom.identity import salted_uid
from knee.review.dicom.multiframe import parametric_map, segmentation
from knee.review.dicom.objects import Place, secondary_capture
from knee.review.dicom.reference import Frame, References, read_dicom, refer_to_frames
from knee.review.dicom.report import Graded, grade_report
from knee.review.dicom.stacks import Slice, Stack, Stacks, header
from knee.review.page.html import ReviewRun
from knee.review.picture import case_picture, contour_lines
from knee.review.writer import NETWORKS, Exported, NotMade, Writer, making

_SERIES_NUMBERS = {"capture": 9001, "map": 9002, "mask": 9003, "report": 9004}
_MR_GEOMETRY = (
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "FrameOfReferenceUID",
)
_Makers = Iterator[tuple[str, Callable[[], Dataset]]]
Pool = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def mean_of_slices(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean (K,) of the probabilities (n, K) of n slices."""
    return np.asarray(probabilities.mean(axis=0))


@dataclass
class DicomExport(Writer):
    """Writes into a folder: captures and reports of radiographs case by case, objects of MR series when all cases are known.

    There is one new series for each network, kind of object and source series (a DICOM series holds one modality), and one
    for each report. Without ``keep_identity``, the objects and the copy of the source that they refer to name patient and
    case by salted hashes. All identifiers depend only on salt, model, source and kind: the same model exports the same
    objects again, and another model makes new series.
    """

    folder: Path
    run: ReviewRun
    version: str
    salt: bytes
    keep_identity: bool = False
    networks: tuple[str, ...] = NETWORKS
    force: bool = False
    maps: bool = False
    """Also write parametric maps, which few viewers show."""
    shift_dates: bool = False
    """Keep the dates of studies, shifted by 1–365 days for each patient; else they are empty."""
    pool: Pool = mean_of_slices
    """The probabilities (K,) of a series from those of its slices (n, K)."""
    ending = ".dcm"
    _stacks: Stacks = field(init=False, default_factory=Stacks)
    _frames: dict[str, Frame] = field(init=False, default_factory=dict)

    @property
    def _references(self) -> References:
        return References(self.salt, self.keep_identity, self.shift_dates, self._frames)

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write the objects of one case; those that cannot be made from its source are listed in ``left_out``."""
        if original.problem:
            return Exported()
        left_out: list[str] = []
        with making("dicom"):
            makers = list(self._makers(case, original, left_out))
        return self._write(case.case, makers, left_out)

    def finish(self) -> Exported:
        """Write the objects of the MR series."""
        done = []
        for stack in self._stacks:
            left_out: list[str] = []
            first = stack.ordered()[0].facts.case
            try:
                with making("objects of the series"):
                    references = [self._reference_of(one) for one in stack.ordered()]
            except NotMade as error:
                done.append(Exported((), (f"case {first}: {error}",)))
                continue
            for network in self.networks:
                done.append(self._write(first, self._of_series(stack, references, network), left_out))
                left_out = []
        self._stacks = Stacks()
        return Exported(
            tuple(file for one in done for file in one.files), tuple(note for one in done for note in one.left_out)
        )

    def _write(self, case: str, makers: Sequence[tuple[str, Callable[[], Dataset]]], left_out: list[str]) -> Exported:
        contents: dict[Path, bytes] = {}
        for name, make in makers:
            try:
                with making(name):
                    made = make()
                    refer_to_frames(made, self._frames)
                    contents[self.folder / f"{case}_{name}.dcm"] = _encoded(made)
            except NotMade as error:
                left_out.append(str(error))
        for path, content in contents.items():
            with whole_file(path, force=self.force) as scratch:
                scratch.write_bytes(content)
        return Exported(tuple(contents), tuple(f"case {case}: {reason}" for reason in dict.fromkeys(left_out)))

    def _makers(self, case: ReviewCase, original: Original, left_out: list[str]) -> _Makers:
        """The objects of a case by name, each still to be made."""
        assert original.path is not None
        source = read_dicom(original.path)
        reference = self._references.of(case, source, original.path, spacing_mm=original.spacing_mm, notes=left_out)
        if reference.get("BurnedInAnnotation") == "YES" and not self.keep_identity:
            left_out.append("its file reports text burned into the pixels; check the image before sharing it")
        if source is not None and not self.keep_identity:
            yield "source", lambda: reference
        if reference.get("Modality") == "MR":
            missing = [keyword for keyword in _MR_GEOMETRY if not reference.get(keyword)]
            if missing:
                left_out.append(f"the source has no {', '.join(missing)}: no map and no segmentation")
            else:
                self._stacks.add(header(original.path), Slice.of(case, original))
        for network in self.networks:
            x = case.attention_on(original, network)
            yield f"{network}_capture", partial(self._capture, case, network, original.grey, x, reference)
            if not bool((x > self.run.threshold).any()):
                left_out.append(f"the {network}'s map is empty, so there is no region to export")
            outlines = contour_lines(x, threshold=self.run.threshold)
            if outlines and "PixelData" in reference and reference.Modality != "MR":
                view, decision = getattr(case, network), self.run.grade_set.decision
                graded = Graded(network, view.probabilities, [reference], f"case {case.case}", decision)
                place = self._place("report", network, [reference])
                title = f"Grade {network}"
                yield (
                    f"{network}_report",
                    partial(grade_report, graded, self.run, place, title=title, outlines=outlines),
                )

    def _of_series(
        self, stack: Stack, references: Sequence[Dataset], network: str
    ) -> list[tuple[str, Callable[[], Dataset]]]:
        """The objects of a series by name: the report refers to the segmentation, if there is one."""
        slices = stack.ordered()
        makers: list[tuple[str, Callable[[], Dataset]]] = []
        masks = [one.attention(network) > self.run.threshold for one in slices]
        shown = [number for number, mask in enumerate(masks) if mask.any()]
        mask: Callable[[], Dataset] | None = None
        if shown:
            seen = [references[number] for number in shown]
            place = self._place("mask", network, seen)
            mask = _once(
                partial(
                    segmentation,
                    [masks[number] for number in shown],
                    seen,
                    self.run,
                    place,
                    title=f"Attention {network}",
                    network=network,
                )
            )
            makers.append((f"{network}_mask", mask))
        if self.maps:
            makers.append((f"{network}_map", partial(self._map, stack, references, network)))
        shares = self.pool(np.stack([one.views[network].probabilities for one in slices]))
        graded = Graded(
            network,
            shares,
            references,
            f"series of {len(slices)} slices, first case {slices[0].facts.case}",
            self.run.grade_set.decision,
        )
        makers.append((f"{network}_report", partial(self._series_report, graded, mask)))
        return makers

    def _series_report(self, graded: Graded, mask: Callable[[], Dataset] | None) -> Dataset:
        place = self._place("report", graded.network, graded.references)
        made = mask() if mask else None
        return grade_report(graded, self.run, place, title=f"Grade {graded.network}", mask=made)

    def _map(self, stack: Stack, references: Sequence[Dataset], network: str) -> Dataset:
        """All slices of the series in its folder; 0 where a slice is not a case of the export."""
        facts = stack.ordered()[0].facts
        planes = {
            depth: (reference, stack.slices[depth].attention(network))
            for depth, reference in zip(sorted(stack.slices), references, strict=True)
        }
        for depth, path in stack.missing(self._stacks.files):
            other = CaseFacts("", "", side=facts.side, patient=facts.patient)
            reference = self._references.of(other, header(path), path, spacing_mm=None, notes=[])
            planes[depth] = reference, np.zeros(stack.size, np.float32)
        ordered = [planes[depth] for depth in sorted(planes)]
        made = [reference for reference, _ in ordered]
        return parametric_map(
            [x for _, x in ordered],
            made,
            self.run,
            self._place("map", network, made),
            title=f"Attention {network}",
            network=network,
        )

    def _reference_of(self, one: Slice) -> Dataset:
        return self._references.of(one.facts, header(one.path), one.path, spacing_mm=None, notes=[])

    def _capture(
        self, case: ReviewCase, network: str, grey: NDArray[np.uint8], x: NDArray[np.float32], reference: Dataset
    ) -> Dataset:
        picture = case_picture(grey, x, case, self.run, network)
        place = self._place("capture", network, [reference])
        return secondary_capture(picture, reference, self.run, place, title=f"Attention {network}")

    def _place(self, kind: str, network: str, references: Sequence[Dataset]) -> Place:
        """Series and identifier of an object made from ``references``, by salt, model, source and kind."""
        first = references[0]
        model = f"{self.run.model_hash} {network} {kind}"
        images = [str(reference.get("SOPInstanceUID") or reference.SeriesInstanceUID) for reference in references]
        instance = object_uid(self.salt, model, self.run.threshold, images)
        series = f"{first.SeriesInstanceUID} {instance if kind == 'report' else ''}"
        number = first.get("InstanceNumber") if kind == "capture" else None
        return Place(
            str(salted_uid(self.salt, f"series {model} {series}")),
            _SERIES_NUMBERS[kind],
            str(instance),
            int(number or 1),
            self.version,
        )


def object_uid(salt: bytes, model: str, threshold: float, images: Sequence[str]) -> UID:
    """The identifier of an object that ``model`` (hash, network and kind of object) made from ``images``."""
    source = hashlib.sha256(" ".join(images).encode()).hexdigest()
    return salted_uid(salt, f"object {model} {threshold} {source}")


def _once(make: Callable[[], Dataset]) -> Callable[[], Dataset]:
    """The same object at every call."""
    made: list[Dataset] = []

    def get() -> Dataset:
        if not made:
            made.append(make())
        return made[0]

    return get


def _encoded(dataset: Dataset) -> bytes:
    """The object as the bytes of its file."""
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()
