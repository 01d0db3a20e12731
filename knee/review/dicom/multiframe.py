"""Objects of a whole series of slices: Segmentation and Parametric Map, one frame for each slice."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.sr.codedict import codes

from knee.evaluation.colors import STUDENT, TEACHER
from knee.review.dicom.objects import KNEE, LATERALITY, LOCAL, MAKER, NOTICE, Place, finish, side_of, version_of
from knee.review.page.html import ReviewRun

_POSITION = "ImagePositionPatient"


def parametric_map(
    maps: Sequence[NDArray[np.float32]],
    references: Sequence[Dataset],
    run: ReviewRun,
    place: Place,
    *,
    title: str,
    network: str,
) -> Dataset:
    """The maps x (H, W) of the slices ``references``, in their order, as float32."""
    attention = hd.sr.CodedConcept("attention", LOCAL, f"Attention of the {network} network, scaled to 0-1 per image")
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
        source_images=list(references),
        pixel_array=np.stack([np.asarray(x, np.float32) for x in maps]),
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
    anatomy.FrameLaterality = _common_side(references) or "U"
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
    _ascend(made)
    _name_dimensions(made, place)
    finish(made, references[0], run, place, title)
    return made


def segmentation(
    masks: Sequence[NDArray[np.bool_]],
    references: Sequence[Dataset],
    run: ReviewRun,
    place: Place,
    *,
    title: str,
    network: str,
) -> Dataset:
    """The masks {x > σ₀} (H, W) of the slices ``references``, in their order, as a binary segmentation.

    Every mask must have a pixel.
    """
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"{MAKER} {network}",
        family=codes.cid7162.ArtificialIntelligence,
        version=version_of(run),
    )
    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=f"Attention of the {network} (not a lesion)",
        segmented_property_category=codes.cid7150.SpatialAndRelationalConcept,
        segmented_property_type=hd.sr.CodedConcept("attention", LOCAL, "Attention of a model"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=[KNEE],
        tracking_uid=place.tracking("segment"),
        tracking_id=f"attention {network}",
        display_color=CIELabColor.from_rgb(*(STUDENT if network == "student" else TEACHER)),
    )
    side = LATERALITY.get(_common_side(references) or "")
    if side:
        sided = hd.sr.CodedConcept.from_code(side)
        description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [sided]
    made: Dataset = hd.seg.Segmentation(
        source_images=list(references),
        pixel_array=np.stack([np.asarray(mask) for mask in masks]).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        content_label="ATTENTION",
        content_description=NOTICE,
        **place.common,
        **place.device,
    )
    _ascend(made)
    _name_dimensions(made, place)
    finish(made, references[0], run, place, title)
    return made


def _ascend(made: Dataset) -> None:
    """Order the frames along the normal of the slices: highdicom orders them the other way, and a viewer fails on that."""
    frames = list(made.PerFrameFunctionalGroupsSequence)
    cosines = np.array(
        made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, float
    )
    positions = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames], float)
    order = np.argsort(positions @ np.cross(cosines[:3], cosines[3:]), kind="stable")
    size = int(made.Rows) * int(made.Columns)
    if "FloatPixelData" in made:
        made.FloatPixelData = np.frombuffer(made.FloatPixelData, "<f4").reshape(-1, size)[order].tobytes()
    else:
        bits = np.unpackbits(np.frombuffer(made.PixelData, np.uint8), bitorder="little")[: len(frames) * size]
        packed = np.packbits(bits.reshape(-1, size)[order], bitorder="little").tobytes()
        made.PixelData = packed + bytes(len(packed) % 2)
    place = [item.DimensionIndexPointer for item in made.DimensionIndexSequence].index(tag_for_keyword(_POSITION))
    for number, index in enumerate(order, 1):
        values = frames[index].FrameContentSequence[0].DimensionIndexValues
        values = list(values) if made.DimensionIndexSequence[1:] else [values]
        values[place] = number
        frames[index].FrameContentSequence[0].DimensionIndexValues = values
    made.PerFrameFunctionalGroupsSequence = [frames[index] for index in order]


def _name_dimensions(made: Dataset, place: Place) -> None:
    """Give the dimensions an identifier that is the same when the object is made again; highdicom draws one."""
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = place.tracking("dimensions")


def _common_side(references: Sequence[Dataset]) -> str | None:
    """The side that all slices show; None if it is unknown or differs."""
    sides = {side_of(reference) for reference in references}
    return sides.pop() if len(sides) == 1 else None
