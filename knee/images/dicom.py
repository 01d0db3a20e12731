"""DICOM files to grey values."""

from __future__ import annotations

import math
import re
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import DeflatedExplicitVRLittleEndian

from knee.images.raster import Pixels, check_size, finite, to_grey
from knee.io.names import composed

# Filters of warnings belong to the process; one thread at a time may change them.
_QUIET = threading.Lock()


class Subject(NamedTuple):
    """Whose knee a file shows and which, both '' where it does not say."""

    patient: str
    side: str
    """'L', 'R' or ''."""


def is_dicom(path: Path) -> bool:
    """Whether a file says of itself that it is DICOM. Raises OSError where it cannot be read."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_subject(path: Path) -> Subject | None:
    """PatientID and laterality of a DICOM file, from its header alone; None where it is none or cannot be read."""
    tags = ["PatientID", "ImageLaterality", "Laterality", "SeriesDescription"]
    # Damaged headers raise almost anything; what is wrong is told when the image is read.
    try:
        if not is_dicom(path):
            return None
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return None
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            patient = composed(str(dataset.get("PatientID") or "").strip(" \0"))
            return Subject(patient, _dicom_side(dataset) or "")
    except Exception:
        return None


def read_dicom(path: Path) -> Pixels:
    """A DICOM image of one frame: modality and (except for MR) VOI look-up applied, MONOCHROME1 inverted once.

    What the header calls padding (around the field of view, say) has no part in this, and becomes as dark as the darkest of
    the rest. An MR window is a reader's choice for the eye, often too narrow; percentile scaling follows anyway. What of
    these is blanked or impossible is not applied. The spacing is ImagerPixelSpacing, else PixelSpacing. Multi-frame and
    deflated files are refused, and pictures in color.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise ValueError("is a deflated DICOM, which can unpack to any size; save it uncompressed")
        dataset = pydicom.dcmread(path)
        _check_dicom(dataset)
        _check_pixel_data(dataset)
        try:
            array = dataset.pixel_array
        except (NotImplementedError, RuntimeError) as error:
            name = dataset.file_meta.TransferSyntaxUID.name
            raise ValueError(f"has pixels that no installed decoder reads ({name}); save it uncompressed") from error
        values = finite(_displayed(array, dataset))
        shown = ~_padding(array, dataset)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "MONOCHROME1":
        values = values[shown].max() + values[shown].min() - values
    if not shown.all():
        values = np.where(shown, values, values[shown].min())
    return Pixels(values, _dicom_spacing(dataset), _dicom_side(dataset), photometric == "MONOCHROME1")


def _check_dicom(dataset: pydicom.Dataset) -> None:
    if "Rows" not in dataset or "PixelData" not in dataset:
        raise ValueError(f"is a DICOM file without an image ({dataset.get('Modality', 'no modality')})")
    check_size(int(dataset.Rows), int(dataset.Columns))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"is a DICOM file of {frames} frames; save the one that is meant as a file of its own")
    allowed = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422")
    if dataset.get("PhotometricInterpretation") not in allowed:
        raise ValueError(f"has photometric interpretation {dataset.get('PhotometricInterpretation')}; save it as grey")


def _check_pixel_data(dataset: pydicom.Dataset) -> None:
    """Refuse more pixels than there should be, as a wrong size in the header has; zeros at the end are padding."""
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return
    rest = dataset.PixelData[get_expected_length(dataset) :]
    if len(rest) >= get_expected_length(dataset) // int(dataset.Rows) and any(rest):
        raise ValueError(f"has more pixels than the {dataset.Columns} × {dataset.Rows} that its header says")


def _displayed(array: npt.NDArray[Any], dataset: pydicom.Dataset) -> npt.NDArray[Any]:
    # Color comes as RGB: pydicom from 3 on has converted YBR already, though the dataset still says what the file does.
    if array.ndim == 3:
        return to_grey(array)
    _drop_unusable(dataset)
    values = apply_modality_lut(array, dataset)
    return np.asarray(values if dataset.get("Modality") == "MR" else apply_voi_lut(values, dataset))


def _padding(array: npt.NDArray[Any], dataset: pydicom.Dataset) -> npt.NDArray[np.bool_]:
    """Which pixels are padding, by PixelPaddingValue and PixelPaddingRangeLimit, in stored values; none where all would be."""
    value = _numbers(dataset, "PixelPaddingValue")
    if array.ndim == 3 or len(value) != 1:
        return np.zeros(array.shape[:2], dtype=bool)
    ends = sorted([value[0], *_numbers(dataset, "PixelPaddingRangeLimit")][:2])
    padded: npt.NDArray[np.bool_] = (array >= ends[0]) & (array <= ends[-1])
    return np.zeros_like(padded) if padded.all() else padded


def _drop_unusable(dataset: pydicom.Dataset) -> None:
    """Take blanked or impossible scalings and windows out of a header: the pixels are sound without them."""
    slope, intercept = _numbers(dataset, "RescaleSlope"), _numbers(dataset, "RescaleIntercept")
    if not (slope and intercept and slope[0]):
        _drop(dataset, "RescaleSlope", "RescaleIntercept")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    center, width = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    wide = width and (width[0] >= 1 if function == "LINEAR" else width[0] > 0)
    if not (center and wide and function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")):
        _drop(dataset, "WindowCenter", "WindowWidth")
    if not dataset.get("VOILUTFunction"):
        _drop(dataset, "VOILUTFunction")
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        table = next(iter(dataset.get(name) or []), None)
        if table is None or len(_numbers(table, "LUTDescriptor")) != 3 or not table.get("LUTData"):
            _drop(dataset, name)


def _drop(dataset: pydicom.Dataset, *names: str) -> None:
    for name in names:
        if name in dataset:
            delattr(dataset, name)


def _numbers(dataset: pydicom.Dataset, name: str) -> list[float]:
    """The values of an element; none where it is absent, blank, or not of finite numbers."""
    try:
        value = dataset.get(name)
        values = [float(one) for one in (value if isinstance(value, MultiValue | list) else [value])]
    except (TypeError, ValueError):
        return []
    return values if all(map(math.isfinite, values)) else []


def _dicom_spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    for name in ("ImagerPixelSpacing", "PixelSpacing"):
        spacing = _numbers(dataset, name)
        if len(spacing) == 2 and all(0 < mm < 100 for mm in spacing):
            return spacing[0], spacing[1]
    return None


def _dicom_side(dataset: pydicom.Dataset) -> str | None:
    for name in ("ImageLaterality", "Laterality"):
        if dataset.get(name) in ("L", "R"):
            return str(dataset.get(name))
    words = set(re.split("[^A-Z]+", str(dataset.get("SeriesDescription", "")).upper()))
    sides = {"LEFT": "L", "RIGHT": "R"}
    named = [sides[word] for word in words & sides.keys()]
    return named[0] if len(named) == 1 else None
