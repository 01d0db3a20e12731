"""Structured reports (TID 1500): the grade once for an image or a series, and where the model's attention was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID

from knee.grades import Decision, decide
from knee.review.dicom.identity import salted_uid
from knee.review.dicom.objects import (
    KNEE,
    LATERALITY,
    LOCAL,
    MAKER,
    NOTICE,
    Place,
    finish,
    one_value,
    recorded_orientation,
    side_of,
    version_of,
)
from knee.review.page.html import ReviewRun
from knee.review.picture import Outline, contour_lines

_RADIOGRAPH = Code("363680008", "SCT", "Radiographic imaging procedure")
_MR = Code("113091000", "SCT", "Magnetic resonance imaging")
_PROBABILITY = hd.sr.CodedConcept("probability", LOCAL, "Probability of the grade by the model")
_USE = hd.sr.CodedConcept("use", LOCAL, "Intended use")
_RESEARCH = hd.sr.CodedConcept("research", LOCAL, NOTICE)
_ATTENTION = hd.sr.CodedConcept("attention", LOCAL, "Attention of a model (not a lesion)")
_HOLE = hd.sr.CodedConcept("attention-hole", LOCAL, "Hole in the outline of a model's attention")


@dataclass(frozen=True)
class Graded:
    """A network's grade of the image, or of the slices, ``references``."""

    network: str
    probabilities: NDArray[np.float64]
    """(K,)."""
    references: Sequence[Dataset]
    subject: str
    """What is graded: ``case c0123456789``, ``series s0123456789``."""
    decision: Decision = "likeliest"
    """Of the grade set."""

    @property
    def grade(self) -> int:
        """The grade called from the probabilities."""
        return int(decide(self.probabilities[None], self.decision)[0])


def grade_report(
    graded: Graded,
    run: ReviewRun,
    place: Place,
    *,
    title: str,
    outlines: Sequence[Outline] = (),
    mask: Dataset | None = None,
) -> Dataset:
    """The grade with its probability; then the outlines on a radiograph, or the segmentation ``mask`` of a series."""
    first = graded.references[0]
    device = salted_uid(MAKER.encode(), f"device {graded.network} {run.model_hash}")
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=device, name=MAKER, model_name=f"{graded.network} {run.model_hash[:8]}"
        ),
    )
    groups = [_grade(graded, run, place)]
    groups += [_region(outline, number, graded, run, place) for number, outline in enumerate(outlines, 1)]
    if mask is not None:
        groups.append(_segment(mask, graded, run, place))
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_MR if first.Modality == "MR" else _RADIOGRAPH,
        imaging_measurements=groups,
        title=codes.cid7021.ImagingMeasurementReport,
        # The image library requires both of these; a radiograph may have neither.
        referenced_images=[first]
        if first.Modality != "MR" and recorded_orientation(first) and first.get("ImagerPixelSpacing")
        else None,
    )
    evidence = [*graded.references, *([mask] if mask is not None else [])]
    made = _document(content[0], evidence, place)
    finish(made, first, run, place, title)
    return made


def _document(content: Dataset, evidence: Sequence[Dataset], place: Place) -> Dataset:
    """The document with its content, which is added afterwards: highdicom copies and searches what it is given, three times."""
    root = Dataset()
    for element in content:
        if element.keyword != "ContentSequence":
            root[element.tag] = element
    root.ContentSequence = []
    made: Dataset = hd.sr.ComprehensiveSR(evidence=evidence, content=root, is_complete=True, **place.common)
    made.ContentSequence = content.ContentSequence
    return made


def _grade(graded: Graded, run: ReviewRun, place: Place) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """The grade of the image or series, once, with the model's probability."""
    scale, grade = run.grade_set, graded.grade
    images = [(reference.SOPClassUID, reference.SOPInstanceUID) for reference in graded.references]
    evaluation = hd.sr.QualitativeEvaluation(
        name=hd.sr.CodedConcept(one_value(scale.name, 16), LOCAL, one_value(scale.title or scale.name, 64)),
        value=hd.sr.CodedConcept(
            f"{one_value(scale.name, 12)}-{grade}", LOCAL, one_value(f"{grade} {scale.names[grade]}", 64)
        ),
    )
    probability = hd.sr.Measurement(
        name=_PROBABILITY,
        value=round(float(graded.probabilities[grade]), 4),
        unit=codes.UCUM.NoUnits,
        referenced_coordinates=[_label(reference) for reference in graded.references],
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(graded, place, "grade"),
        algorithm_id=_algorithm(graded, run),
        finding_sites=[_site(graded.references[0])],
        measurements=[probability],
        qualitative_evaluations=[evaluation, hd.sr.QualitativeEvaluation(_USE, _RESEARCH)],
        source_images=[hd.sr.SourceImageForMeasurementGroup(*image) for image in images],
    )
    # Viewers that show no qualitative evaluations show a comment.
    text = f"{scale.name} {grade} {scale.names[grade]}, {NOTICE}"
    comment = hd.sr.TextContentItem(codes.DCM.Comment, text, hd.sr.RelationshipTypeValues.CONTAINS)
    group[0].ContentSequence.append(comment)
    return group


def _label(reference: Dataset) -> hd.sr.CoordinatesForMeasurement:
    """The first pixel, where a viewer writes the grade. OHIF fails on a measurement group without a place on an image."""
    point = np.array([[0.5, 0.5]])
    return _on_image(point, reference.SOPClassUID, reference.SOPInstanceUID)


def _on_image(line: NDArray[np.float64], kind: str, image: str) -> hd.sr.CoordinatesForMeasurement:
    return hd.sr.CoordinatesForMeasurement(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE if len(line) > 1 else hd.sr.GraphicTypeValues.POINT,
        graphic_data=line,
        source_image=hd.sr.SourceImageForRegion(kind, image),
    )


def _region(
    outline: Outline, number: int, graded: Graded, run: ReviewRun, place: Place
) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    (reference,) = graded.references
    region = hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=outline.points,
        source_image=hd.sr.SourceImageForRegion(reference.SOPClassUID, reference.SOPInstanceUID),
    )
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(graded, place, f"outline {number}"),
        referenced_region=region,
        finding_type=_HOLE if outline.is_hole else _ATTENTION,
        algorithm_id=_algorithm(graded, run),
        finding_sites=[_site(reference)],
    )


def _segment(
    mask: Dataset, graded: Graded, run: ReviewRun, place: Place
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """The segmentation of a series, and the area where it is largest, which gives the group a place on an image."""
    first = graded.references[0]
    frames = mask.pixel_array.reshape(-1, mask.Rows, mask.Columns)
    largest = int(frames.sum((1, 2)).argmax())
    position = mask.PerFrameFunctionalGroupsSequence[largest].PlanePositionSequence[0].ImagePositionPatient
    image = next(one for one in graded.references if np.allclose(one.ImagePositionPatient, position, rtol=0, atol=1e-3))
    outline = next(iter(contour_lines(frames[largest].astype(np.float32))), None)
    area = hd.sr.Measurement(
        name=codes.SCT.Area,
        value=round(float(frames[largest].sum()) * float(np.prod([float(mm) for mm in image.PixelSpacing])), 4),
        unit=codes.UCUM.SquareMillimeter,
    )
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(graded, place, "segment"),
        referenced_segment=hd.sr.ReferencedSegment(
            mask.SOPClassUID,
            mask.SOPInstanceUID,
            1,
            source_series=hd.sr.SourceSeriesForSegmentation(UID(first.SeriesInstanceUID)),
        ),
        finding_type=_ATTENTION,
        algorithm_id=_algorithm(graded, run),
        finding_sites=[_site(first)],
        measurements=[area],
    )
    (number,) = (item for item in group[0].ContentSequence if item.ValueType == "NUM")
    number.ContentSequence = [
        _on_image(outline.points, image.SOPClassUID, image.SOPInstanceUID) if outline else _label(image)
    ]
    return group


def _tracking(graded: Graded, place: Place, what: str) -> hd.sr.TrackingIdentifier:
    return hd.sr.TrackingIdentifier(
        uid=place.tracking(what), identifier=f"{graded.subject}: {what} by the {graded.network}"
    )


def _algorithm(graded: Graded, run: ReviewRun) -> hd.sr.AlgorithmIdentification:
    return hd.sr.AlgorithmIdentification(name=f"{MAKER} {graded.network}", version=version_of(run))


def _site(reference: Dataset) -> hd.sr.FindingSite:
    return hd.sr.FindingSite(anatomic_location=KNEE, laterality=LATERALITY.get(side_of(reference) or ""))
