"""Read DICOM files as grey values."""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.filereader import read_dataset, read_partial
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from knee.images.dicom_pixels import single_frame, stored_pixels
from knee.images.raster import CountedReads, Pixels, Values, check_size, finite, to_grey
from knee.io.names import composed

# Warning filters are global to the process; only one thread at a time may change them.
_QUIET = threading.Lock()

_NO_PREAMBLE = re.compile(rb"[\x02\x08]\0.\0(?:[A-Z]{2}|[\0-\x40]\0\0\0)", re.DOTALL)
_NOT_IMAGES = (
    "SEG",
    "SR",
    "PR",
    "KO",
    "DOC",
    "REG",
    "RTSTRUCT",
    "RTDOSE",
    "RTPLAN",
    "PLAN",
    "AU",
    "ECG",
    "HC",
    "OT_SC",
)
_MOST_WINDOWS = 8
_BAND = 256
_SAMPLES = 1_000_000
_WINDOW_IGNORED = (
    "with a display window in the header that makes most of the picture black or white, which is not applied"
)


class Subject(NamedTuple):
    """Patient and side of the knee in a file; both '' if the file does not give them."""

    patient: str
    side: str
    """'L', 'R' or ''."""


def is_dicom(path: Path) -> bool:
    """Whether a file's content is DICOM. Raises OSError if it cannot be read."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (132 bytes or more) is DICOM, possibly without the preamble."""
    return head[128:132] == b"DICM" or _NO_PREAMBLE.match(head) is not None


def read_subject(path: Path) -> Subject | None:
    """PatientID and laterality of a DICOM file, from its header only; None if it is not DICOM or cannot be read."""
    dataset = _read_header(path, ["PatientID", "ImageLaterality", "Laterality", "SeriesDescription"])
    if dataset is None:
        return None
    patient = composed(str(dataset.get("PatientID") or "").strip(" \0"))
    return Subject(patient, _dicom_side(dataset) or "")


def read_modality(path: Path) -> str:
    """The modality of a DICOM file, from its header only; '' for all other files."""
    dataset = _read_header(path, ["Modality"])
    return "" if dataset is None else _modality(dataset)


def _modality(dataset: pydicom.Dataset) -> str:
    return str(dataset.get("Modality") or "").strip(" \0").upper()[:16]


def shows_left_first(path: Path) -> bool:
    """Whether a DICOM file's PatientOrientation says that its columns run to the patient's right: a mirrored frontal view."""
    dataset = _read_header(path, ["PatientOrientation"])
    orientation = (dataset.get("PatientOrientation") if dataset else None) or [""]
    return str(orientation[0])[:1] == "R"


def other_object(path: Path) -> str:
    """The kind of a DICOM object that is not an image of a patient ('Segmentation Storage'); '' for all other files."""
    dataset = _read_header(path, ["SOPClassUID", "Modality"])
    return "" if dataset is None else _other_object(dataset)


def _other_object(dataset: pydicom.Dataset) -> str:
    kind = UID(str(dataset.get("SOPClassUID") or "")).name
    if kind.endswith("Secondary Capture Image Storage") or kind.startswith("VL "):
        return kind
    if "Storage" in kind or "Directory" in kind:
        return "" if "Image Storage" in kind else kind
    modality = str(dataset.get("Modality") or "")
    return f"an object of modality {modality}" if modality in _NOT_IMAGES else ""


def _read_header(path: Path, tags: list[str]) -> pydicom.Dataset | None:
    # Damaged headers can raise almost any exception; the error is reported when the image is read.
    try:
        with path.open("rb") as stream, _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = stream.read(512)
            if not looks_like_dicom(head):
                return None
            if head[128:132] == b"DICM" and _transfer_syntax(stream) == DeflatedExplicitVRLittleEndian:
                return None
            stream.seek(0)
            return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags, force=True)
    except Exception:
        return None


def _transfer_syntax(stream: BinaryIO) -> str:
    """According to the file meta information; '' if absent."""
    stream.seek(132)
    meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag >> 16 != 2)
    return str(meta.get("TransferSyntaxUID") or "")


def frame_count(path: Path) -> int:
    """How many frames a DICOM file has, according to its header; 1 for other and unreadable files."""
    dataset = _read_header(path, ["NumberOfFrames"])
    count = str(dataset.get("NumberOfFrames") or 1) if dataset is not None else "1"
    return int(count) if count.isdecimal() and len(count) < 7 else 1


def read_dicom(path: Path, frame: int | None = None) -> Pixels:
    """A DICOM image of one frame, or its frame number ``frame``, from 0: look-ups applied, MONOCHROME1 inverted once.

    These are the modality and (except for MR) the VOI look-up. Padding pixels (e.g. around the field of view) are excluded and
    set to the darkest of the other values. MR windows are not applied: readers choose them for display, often too narrow, and
    percentile scaling follows anyway. Blank and invalid scalings are not applied, nor is a window that clips more than half
    of the pixels. The spacing is ImagerPixelSpacing, else PixelSpacing. Multi-frame files without a ``frame``, deflated files,
    color images and objects that are not images of a patient are refused.
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = _read_dataset(path.read_bytes())
        if frame is not None:
            single_frame(dataset, frame)
        _check_dicom(dataset)
        padding = [
            value for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") for value in _numbers(dataset, name)
        ]
        array, padded = stored_pixels(dataset, padding)
        values, remarks = _displayed(array, ~padded, dataset)
    photometric = str(dataset.PhotometricInterpretation)
    shown = ~padded
    if photometric == "MONOCHROME1":
        values = values[shown].max() + values[shown].min() - values
    if padded.any():
        values = np.where(shown, values, values[shown].min())
    negative = photometric == "MONOCHROME1"
    return Pixels(
        values, _dicom_spacing(dataset), _dicom_side(dataset), negative, modality=_modality(dataset), remarks=remarks
    )


def _read_dataset(data: bytes) -> pydicom.Dataset:
    """All elements up to and including the pixels. A missing preamble or transfer syntax is filled in."""
    if data[128:132] != b"DICM":
        data = bytes(128) + b"DICM" + data
    if _transfer_syntax(CountedReads(data)) == DeflatedExplicitVRLittleEndian:
        raise ValueError("is a deflated DICOM, which can unpack to any size; save it uncompressed")
    last = []

    def after_pixels(tag: int, *_: object) -> bool:
        last.append(tag)
        return len(last) > 1 and last[-2] == 0x7FE00010

    dataset = read_partial(CountedReads(data), after_pixels)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ValueError("does not say how its pixels are compressed (no transfer syntax); save it uncompressed")
        implicit, little = dataset.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return dataset


def _check_dicom(dataset: pydicom.Dataset) -> None:
    kind = _other_object(dataset)
    if kind:
        hint = "; if it is a radiograph, save it as PNG" if "Capture" in kind else ""
        raise ValueError(f"is not an image of a knee but a DICOM object of another kind ({kind}){hint}")
    if "Rows" not in dataset or "PixelData" not in dataset:
        raise ValueError(f"is a DICOM file without an image ({dataset.get('Modality', 'no modality')})")
    check_size(int(dataset.Rows), int(dataset.Columns))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"is a DICOM file of {frames} frames; name one as FILE#7, or choose them with --slices")
    allowed = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422")
    if dataset.get("PhotometricInterpretation") not in allowed:
        raise ValueError(f"has photometric interpretation {dataset.get('PhotometricInterpretation')}; save it as grey")


def _displayed(
    array: npt.NDArray[Any], shown: npt.NDArray[np.bool_], dataset: pydicom.Dataset
) -> tuple[Values, tuple[str, ...]]:
    """Stored values after the header's look-ups and windows, and remarks on those that are not applied."""
    # Color is RGB here: pydicom 3 and later has already converted YBR, although the dataset still has the file's value.
    if array.ndim == 3:
        return to_grey(array), ()
    _drop_unusable(dataset)
    step = math.isqrt(array.size // _SAMPLES) + 1
    sample = apply_modality_lut(array[::step, ::step][shown[::step, ::step]], dataset)
    views = [] if dataset.get("Modality") == "MR" else list(_voi_views(dataset))
    chosen = next((view for view in views if not _clips_most(sample, view(sample))), None)
    result = np.empty(array.shape, np.float32)
    for start in range(0, len(array), _BAND):
        band = apply_modality_lut(array[start : start + _BAND], dataset)
        result[start : start + _BAND] = finite(band if chosen is None else chosen(band))
    return result, (_WINDOW_IGNORED,) if views and chosen is not views[0] else ()


def _voi_views(dataset: pydicom.Dataset) -> Iterator[Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]:
    """The look-ups and windows of a header, best first."""
    for index in range(min(len(dataset.get("VOILUTSequence") or ()), _MOST_WINDOWS)):
        yield partial(apply_voi, ds=dataset, index=index)
    for index in range(min(map(len, (_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"))))):
        if index < _MOST_WINDOWS and _is_window(dataset, index):
            yield partial(apply_windowing, ds=dataset, index=index)


def _clips_most(values: npt.NDArray[Any], viewed: npt.NDArray[Any]) -> bool:
    """Whether a window clips more than half of the values that were neither the lowest nor the highest."""
    if not values.size:
        return False
    between = (values > values.min()) & (values < values.max())
    low, high = float(viewed.min()), float(viewed.max())
    margin = (high - low) * 1e-3
    clipped = (viewed <= low + margin) | (viewed >= high - margin)
    return bool((clipped & between).sum() > 0.5 * between.sum())


def _drop_unusable(dataset: pydicom.Dataset) -> None:
    """Remove blank or invalid scalings and windows from a header: the pixels are valid without them."""
    slope, intercept = _numbers(dataset, "RescaleSlope"), _numbers(dataset, "RescaleIntercept")
    if not (slope and intercept and slope[0]):
        _drop(dataset, "RescaleSlope", "RescaleIntercept")
    if not dataset.get("VOILUTFunction"):
        _drop(dataset, "VOILUTFunction")
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        table = next(iter(dataset.get(name) or []), None)
        if table is None or len(_numbers(table, "LUTDescriptor")) != 3 or not table.get("LUTData"):
            _drop(dataset, name)


def _is_window(dataset: pydicom.Dataset, index: int) -> bool:
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    width = _numbers(dataset, "WindowWidth")[index]
    return function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") and (width >= 1 if function == "LINEAR" else width > 0)


def _drop(dataset: pydicom.Dataset, *names: str) -> None:
    for name in names:
        if name in dataset:
            delattr(dataset, name)


def _numbers(dataset: pydicom.Dataset, name: str) -> list[float]:
    """The values of an element; none if it is absent, blank, or not made of finite numbers."""
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
