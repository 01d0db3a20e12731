"""The DICOM objects of one case: Secondary Capture, Parametric Map, Segmentation and structured report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian

from knee.review import CLAIM
from knee.review.cases import NetworkView
from knee.review.page.html import ReviewRun
from knee.review.picture import Picture

MAKER = "dcmt-knee"
NOTICE = "RESEARCH - not for diagnostic use"
KNEE = Code("72696002", "SCT", "Knee region structure")
_LOCAL = "99DCMT"
_SOURCE = Code("121322", "DCM", "Source image for image processing operation")


@dataclass(frozen=True)
class Place:
    """The series of an object, and its number within the series."""

    series_uid: str
    series_number: int
    instance_number: int
    version: str
    """Of this software."""

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that all kinds of highdicom objects take; every call gives a new instance UID."""
        return {
            "series_instance_uid": self.series_uid,
            "series_number": self.series_number,
            "sop_instance_uid": hd.UID(),
            "instance_number": self.instance_number,
            "manufacturer": MAKER,
        }

    @property
    def device(self) -> dict[str, Any]:
        """Arguments that name this software, for objects that need a device."""
        return {
            "manufacturer_model_name": "Knee attention review",
            "software_versions": self.version,
            "device_serial_number": "0",
        }


def secondary_capture(picture: Picture, reference: Dataset, run: ReviewRun, place: Place, *, title: str) -> Dataset:
    """The picture as an RGB Secondary Capture of the reference's study, which every viewer shows."""
    spacing = reference.get("PixelSpacing") or reference.get("ImagerPixelSpacing")
    side, orientation = _side(reference), _recorded_orientation(reference) or _nearest_orientation(reference)
    capture: Dataset = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=reference,
        pixel_array=picture.pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        pixel_spacing=tuple(round(float(mm) / picture.factor, 8) for mm in spacing) if spacing else None,
        laterality=side,
        patient_orientation=("L", "F"),  # required here even if unknown; replaced below by the recorded one
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **place.common,
    )
    capture.PatientOrientation = list(orientation) if orientation else None
    if side is None and "Laterality" in capture:
        del capture.Laterality
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "YES"
    capture.DerivationDescription = CLAIM
    if "SOPInstanceUID" in reference and "PixelData" in reference:
        capture.SourceImageSequence = [_referenced(reference)]
    _finish(capture, reference, run, place, title)
    return capture


def parametric_map(
    x: NDArray[np.float32], reference: Dataset, run: ReviewRun, place: Place, *, title: str, network: str
) -> Dataset:
    """x (H, W) on the pixels of an MR slice, as float32."""
    attention = hd.sr.CodedConcept("attention", _LOCAL, f"Attention of the {network} network, scaled to 0-1 per image")
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="x",
        lut_explanation="Attention, scaled to 0-1 per image",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1,
        intercept=0,
        quantity_definition=attention,
    )
    made: Dataset = hd.pm.ParametricMap(
        source_images=[reference],
        pixel_array=np.asarray(x, np.float32)[None],
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="ATTENTION",
        content_description=NOTICE,
        content_qualification="RESEARCH",
        **place.common,
        **place.device,
    )
    # Slicer's converter crashes without an anatomic region and its laterality.
    anatomy = Dataset()
    anatomy.AnatomicRegionSequence = [hd.sr.CodedConcept.from_code(KNEE)]
    anatomy.FrameLaterality = _side(reference) or "U"
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
    _finish(made, reference, run, place, title)
    return made


def segmentation(
    x: NDArray[np.float32], reference: Dataset, run: ReviewRun, place: Place, *, title: str, network: str
) -> Dataset:
    """{x > σ₀} on the pixels of an MR slice, as a binary segmentation. ``x`` must exceed σ₀ somewhere."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"{MAKER} {network}",
        family=codes.cid7162.ArtificialIntelligence,
        version=_version(run),
    )
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=f"Attention of the {network} (not a lesion)",
        segmented_property_category=codes.cid7150.SpatialAndRelationalConcept,
        segmented_property_type=hd.sr.CodedConcept("attention", _LOCAL, "Attention of a model"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[KNEE],
        tracking_uid=hd.UID(),
        tracking_id=f"attention {network}",
    )
    side = _LATERALITY.get(_side(reference) or "")
    if side:
        sided = hd.sr.CodedConcept.from_code(side)
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [sided]
    made: Dataset = hd.seg.Segmentation(
        source_images=[reference],
        pixel_array=(np.asarray(x) > run.threshold)[None].astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        content_label="ATTENTION",
        content_description=NOTICE,
        **place.common,
        **place.device,
    )
    _finish(made, reference, run, place, title)
    return made


def attention_report(
    lines: Sequence[NDArray[np.float64]],
    view: NetworkView,
    reference: Dataset,
    run: ReviewRun,
    place: Place,
    *,
    title: str,
    network: str,
) -> Dataset:
    """A TID 1500 report on a radiograph: ``lines`` as regions, the network's grade as a qualitative evaluation.

    ``lines`` come from ``contour_lines``, at least one: a report without a region crashes a common viewer.
    """
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=MAKER, model_name=f"{network} {run.model_hash[:8]}"
        ),
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PROCEDURE,
        imaging_measurements=[_region(line, view, reference, run, network) for line in lines],
        title=codes.cid7021.ImagingMeasurementReport,
        # The image library requires both of these; a radiograph may have neither.
        referenced_images=[reference]
        if _recorded_orientation(reference) and reference.get("ImagerPixelSpacing")
        else None,
    )
    made: Dataset = hd.sr.ComprehensiveSR(evidence=[reference], content=content[0], is_complete=True, **place.common)
    _finish(made, reference, run, place, title)
    return made


def _region(line: NDArray[np.float64], view: NetworkView, reference: Dataset, run: ReviewRun, network: str) -> Any:
    """One outline, with the network's grade of the whole image."""
    scale, name = run.grade_set, run.grade_set.names[view.grade]
    grade = hd.sr.QualitativeEvaluation(
        name=hd.sr.CodedConcept(_one_value(scale.name, 16), _LOCAL, _one_value(scale.title or scale.name, 64)),
        value=hd.sr.CodedConcept(
            f"{_one_value(scale.name, 12)}-{view.grade}", _LOCAL, _one_value(f"{view.grade} {name}", 64)
        ),
    )
    region = hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=line,
        source_image=hd.sr.SourceImageForRegion(reference.SOPClassUID, reference.SOPInstanceUID),
    )
    site = hd.sr.FindingSite(anatomic_location=KNEE, laterality=_LATERALITY.get(_side(reference) or ""))
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=f"attention {network}"),
        referenced_region=region,
        finding_type=hd.sr.CodedConcept("attention", _LOCAL, "Attention of a model (not a lesion)"),
        algorithm_id=hd.sr.AlgorithmIdentification(name=f"{MAKER} {network}", version=_version(run)),
        finding_sites=[site],
        qualitative_evaluations=[grade],
    )


_PROCEDURE = Code("363680008", "SCT", "Radiographic imaging procedure")
_LATERALITY = {"L": Code("7771000", "SCT", "Left"), "R": Code("24028007", "SCT", "Right")}


def _finish(made: Dataset, reference: Dataset, run: ReviewRun, place: Place, title: str) -> None:
    """Add what highdicom does not copy from the reference, and the research notice of every object."""
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SeriesDescription = f"{title} {NOTICE}"[:64]
    carried = ("PatientIdentityRemoved", "DeidentificationMethod")
    for keyword in carried if made.Modality == "SR" else (*carried, "BodyPartExamined"):
        if keyword in reference:
            made[keyword] = reference[keyword]
    equipment = hd.ContributingEquipment(
        manufacturer=MAKER,
        purpose_of_reference=Code("109102", "DCM", "Processing Equipment"),
        manufacturer_model_name=_version(run),
        software_versions=place.version,
        contribution_description=NOTICE,
    )
    made.ContributingEquipmentSequence = [equipment, *made.get("ContributingEquipmentSequence", [])]


def _version(run: ReviewRun) -> str:
    """Names the weights, their hash first because a long run name is cut off."""
    # 64 characters are allowed, padding included.
    return _one_value(f"model {run.model_hash}, run {run.run}", 60)


def _one_value(text: str, length: int) -> str:
    """Text as one DICOM value: a backslash would separate two values, and control characters are not allowed."""
    return "".join(letter if letter.isprintable() else " " for letter in text.replace("\\", "/"))[:length].strip()


def _referenced(reference: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.SOPClassUID
    item.ReferencedSOPInstanceUID = UID(reference.SOPInstanceUID)
    item.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(_SOURCE)]
    return item


def _side(reference: Dataset) -> str | None:
    for keyword in ("ImageLaterality", "Laterality"):
        if reference.get(keyword) in ("L", "R"):
            return str(reference.get(keyword))
    return None


def _recorded_orientation(reference: Dataset) -> tuple[str, str] | None:
    """Directions of rows and columns as recorded in the file: ``P``, or ``PR`` for a direction between two axes."""
    recorded = reference.get("PatientOrientation")
    if not recorded or isinstance(recorded, str) or len(recorded) != 2:
        return None
    rows, columns = (str(letters).strip() for letters in recorded)
    return (rows, columns) if all(re.fullmatch("[APRLHF]{1,3}", letters) for letters in (rows, columns)) else None


def _nearest_orientation(reference: Dataset) -> tuple[str, str] | None:
    """Directions of rows and columns as the nearest axes of the patient."""
    cosines = reference.get("ImageOrientationPatient")
    if not cosines or len(cosines) != 6:
        return None
    return _nearest_axis(cosines[:3]), _nearest_axis(cosines[3:])


def _nearest_axis(direction: Any) -> str:
    """DICOM's patient axes run to the left, to the back and to the head.

    >>> _nearest_axis([0.1, 0.9, 0.0]), _nearest_axis([0.0, 0.0, -1.0])
    ('P', 'F')
    """
    values = [float(value) for value in direction]
    axis = int(np.argmax(np.abs(values)))
    return ("LPH" if values[axis] > 0 else "RAF")[axis]
