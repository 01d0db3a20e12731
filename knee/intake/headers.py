"""What the headers of DICOM files say before an image is read: what kind of object, whose, of which study and day."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from knee.images.dicom import is_dicom, read_subject

# Filters of warnings belong to the process; one thread at a time may change them.
_QUIET = threading.Lock()
_DRAWN = ("SD", "SYN", "DRW")
"""Conversion types of scanned documents, synthetic images and drawings."""
_TAGS = ["SOPClassUID", "ImageType", "ConversionType", "StudyDate", "StudyInstanceUID"]


class Header(NamedTuple):
    """What a DICOM file says of itself; '' where it does not say."""

    patient: str
    side: str
    """'L', 'R' or ''."""
    not_an_image: str
    """What it is instead of an image of a knee (``Segmentation``), '' for an image."""
    date: str
    """The study's date, eight digits."""
    study: str
    """The study's identifier. A study is of one person."""


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file without its pixels; None where it is not DICOM or cannot be read."""
    # Damaged headers raise almost anything; what is wrong is reported when the image is read.
    try:
        if not is_dicom(path):
            return None
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = read_file_meta_info(path)
            kind = str(meta.get("MediaStorageSOPClassUID", ""))
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return Header("", "", _not_an_image(kind, "", ""), "", "")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            origin = next(iter(dataset.get("ImageType") or []), "")
            kind = str(dataset.get("SOPClassUID") or kind)
            other = _not_an_image(kind, str(origin), str(dataset.get("ConversionType", "")))
            date = re.fullmatch("[0-9]{8}", str(dataset.get("StudyDate") or "").strip())
            study = str(dataset.get("StudyInstanceUID") or "").strip(" \0")
        subject = read_subject(path)
        patient, side = subject or ("", "")
        return Header(patient, side, other, date[0] if date else "", study)
    except Exception:
        return None


def _not_an_image(kind: str, origin: str, conversion: str) -> str:
    """What an object of this class is, '' for an image. A derived secondary capture is a report or a picture of a result.

    >>> _not_an_image("1.2.840.10008.5.1.4.1.1.66.4", "", ""), _not_an_image("1.2.840.10008.5.1.4.1.1.1.1", "", "")
    ('Segmentation', '')
    """
    name = UID(kind).name
    if name == kind or not name:  # private or not given
        return ""
    if "Secondary Capture" in name:
        return "derived Secondary Capture" if origin == "DERIVED" or conversion in _DRAWN else ""
    return "" if "Image" in name else name.removesuffix(" Storage")
