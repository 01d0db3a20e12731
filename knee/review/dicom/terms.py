"""Defined terms of DICOM: what the values of kept attributes may be, so that none of them carries free text.

Code strings may hold any short text, a name too. In a de-identified copy each value is one of the standard's terms (DICOM
PS3.3); any other is replaced by the term for "unknown", where the attribute needs one, or left out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import format_number_as_ds

LOOKUP_UNITS = ("OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")
_NUMBER = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *")
_NUMERIC = ("DS", "IS")
_LONGEST_DECIMAL = 16
_BINARY = ("US", "SS", "UL", "SL", "FL", "FD", "OB", "OW", "AT", "UI")


class Terms(NamedTuple):
    """The terms of an attribute as a pattern, and what replaces any other value: None leaves it out."""

    pattern: str
    otherwise: str | None = None


TERMS = {
    "Modality": Terms("CR|DX|MR|CT|RG|XA|RF|OT|US|SC", "OT"),
    "PresentationIntentType": Terms("FOR PRESENTATION|FOR PROCESSING", "FOR PRESENTATION"),
    "PhotometricInterpretation": Terms("MONOCHROME[12]|RGB|PALETTE COLOR|YBR_[A-Z0-9_]{3,12}", "MONOCHROME2"),
    "RescaleType": Terms("|".join(LOOKUP_UNITS), "US"),
    "ModalityLUTType": Terms("|".join(LOOKUP_UNITS), "US"),
    "VOILUTFunction": Terms("LINEAR|LINEAR_EXACT|SIGMOID"),
    "PresentationLUTShape": Terms("IDENTITY|INVERSE", "IDENTITY"),
    "PixelIntensityRelationship": Terms("LIN|LOG|DISP", "LIN"),
    "LossyImageCompression": Terms("0[01]"),
    "LossyImageCompressionMethod": Terms(r"ISO_(10918_1|14495_1|15444_1|15444_15|13818_2|14496_10|23008_2|18181_1)"),
    "BurnedInAnnotation": Terms("YES|NO"),
    "PixelSpacingCalibrationType": Terms("GEOMETRY|FIDUCIAL"),
    "Laterality": Terms("[LR]"),
    "ImageLaterality": Terms("[LRUB]", "U"),
    "BodyPartExamined": Terms("KNEE|PATELLA|LEG|EXTREMITY|THIGH|CALF|FEMUR|TIBIA|FIBULA|HIP|ANKLE|FOOT|LOWERLIMB"),
    "PatientOrientation": Terms("[LRAPHF]{1,3}"),
    "ViewPosition": Terms("AP|PA|LL|RL|RLD|LLD|RLO|LLO|LAO|RAO|LPO|RPO"),
    "PatientPosition": Terms("(HF|FF)(S|P|DR|DL)|[AL]F[SPLR]?"),
    "PositionerType": Terms("CARM|COLUMN|RIGID|NONE", "NONE"),
    "DetectorType": Terms("DIRECT|SCINTILLATOR|STORAGE|FILM", "SCINTILLATOR"),
    "ScanningSequence": Terms("SE|IR|GR|EP|RM", "RM"),
    "SequenceVariant": Terms("SK|MTC|SS|TRSS|SP|MP|OSP|NONE", "NONE"),
    "ScanOptions": Terms("PER|RG|CG|PPG|FC|PFF|PFP|SP|FS"),
    "MRAcquisitionType": Terms("2D|3D"),
    "CodingSchemeDesignator": Terms("SRT|SCT|SNM3|DCM|FMA"),
    "CodingSchemeVersion": Terms(r"[0-9.]{1,8}"),
    "CodeValue": Terms(r"[A-Z]-[0-9A-F]{4,6}|\d{5,18}"),
}
"""By keyword; attributes of text that are not listed here are left out (``limit_to_terms``)."""

_IMAGE_TYPE = (("ORIGINAL|DERIVED", "ORIGINAL"), ("PRIMARY|SECONDARY", "PRIMARY"))
_IMAGE_TYPE_LATER = (
    "AXIAL|LOCALIZER|OTHER|MPR|PROJECTION IMAGE|M|P|R|I|SE|GR|FFE|IR|M_SE|M_FFE"
    "|NORM|ND|DIS2D|DIS3D|FM|FS|T1|T2|PD|NONE|"
)
MEANINGS = {
    "72696002": "Knee",
    "49076000": "Knee joint",
    "T-D9200": "Knee",
    "T-15720": "Knee joint",
    "399348003": "antero-posterior",
    "272479007": "postero-anterior",
    "R-10206": "antero-posterior",
    "R-10214": "postero-anterior",
}
"""Meanings of codes; that of any other code is replaced, since it is free text."""
_OTHER_MEANING = "Not stated"


def limit_to_terms(image: Dataset) -> None:
    """Replace or remove every value of text that is not a defined term, and of numbers that are not numbers, in place.

    Decimals longer than their attribute allows, as some software writes them, are rounded to its 16 characters.
    Sequences are handled item by item. Identifiers (UI) and binary values are left as they are.
    """
    for element in list(image):
        if element.VR == "SQ":
            items = list(element.value)
            for item in items:
                limit_to_terms(item)
            element.value = [item for item in items if _is_whole(item)]
            if items and not element.value:
                del image[element.tag]
        elif set(element.VR.split(" or ")) & set(_BINARY):
            continue
        elif element.VR in _NUMERIC:
            if not all(_NUMBER.fullmatch(str(value)) for value in _values(element)):
                del image[element.tag]
            elif element.VR == "DS" and any(len(value) > _LONGEST_DECIMAL for value in _values(element)):
                element.value = [format_number_as_ds(float(value)) for value in _values(element)]
        else:
            _limit(image, element)
    if "CodeMeaning" in image or "CodeValue" in image:
        image.CodeMeaning = MEANINGS.get(str(image.get("CodeValue", "")), _OTHER_MEANING)


def _is_whole(item: Dataset) -> bool:
    """Whether a code still has its value and its scheme; other items are whole."""
    return "CodeMeaning" not in item or ("CodeValue" in item and "CodingSchemeDesignator" in item)


def _limit(image: Dataset, element: DataElement) -> None:
    keyword, values = element.keyword, _values(element)
    if keyword == "CodeMeaning":
        return
    if keyword == "ImageType":
        later = values[len(_IMAGE_TYPE) :]
        first = [
            value if re.fullmatch(pattern, value) else otherwise
            for value, (pattern, otherwise) in zip(values, _IMAGE_TYPE, strict=False)
        ]
        element.value = first + [value if re.fullmatch(_IMAGE_TYPE_LATER, value) else "OTHER" for value in later]
        return
    terms = TERMS.get(keyword)
    if not any(values):
        return
    kept = [
        value if terms and re.fullmatch(terms.pattern, value) else terms.otherwise if terms else None
        for value in values
    ]
    if None not in kept:
        element.value = kept if len(kept) > 1 else kept[0]
    else:
        del image[element.tag]


def _values(element: DataElement) -> list[str]:
    value = element.value
    return (
        [str(one) for one in value] if isinstance(value, (MultiValue, list)) else [] if value is None else [str(value)]
    )
