"""De-identification: no element names the patient, the pixels of the copy are those of the source."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom import DataElement
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from knee.images.read import read_pixels
from knee.review.dicom.identity import deidentified

from .conftest import _named, _source_values


@pytest.mark.parametrize("kind", ["MR", "DX"])
def test_nothing_names_the_patient_unless_asked_to(write_source, case_of, export, kind):
    path = write_source(kind, _source_values(kind))
    source = pydicom.dcmread(path)
    secrets = ["Doe", "SECRET17", "ACC9", "House", "Hospital", "19500101", "20200102", source.StudyInstanceUID]
    secrets += [source.SOPInstanceUID, source.SeriesInstanceUID, str(path)]
    exported = export.write(case_of(path, "L"))
    for file in exported.files:
        content = file.read_bytes()
        assert [secret for secret in secrets if str(secret).encode() in content] == []
        assert pydicom.dcmread(file).PatientIdentityRemoved == "YES"
    kept = replace(export, keep_identity=True, force=True).write(case_of(path, "L"))
    assert "source" not in _named(kept)
    for file in kept.files:
        made = pydicom.dcmread(file)
        assert (made.PatientID, made.StudyInstanceUID) == ("SECRET17", source.StudyInstanceUID)
        assert source.SOPInstanceUID.encode() in file.read_bytes()


@pytest.mark.parametrize("syntax", [RLELossless, ExplicitVRBigEndian, ImplicitVRLittleEndian])
def test_the_copy_of_the_source_has_its_pixels_whatever_their_encoding(write_source, case_of, export, syntax):
    path = write_source("MR", _source_values("MR"))
    dataset = pydicom.dcmread(path)
    if syntax == RLELossless:
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    else:
        swapped = dataset.pixel_array.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
        dataset.PixelData = swapped.tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
            pydicom.dcmwrite(path, dataset, force_encoding=True, **encoding)
    copy = pydicom.dcmread(_named(export.write(case_of(path, "L")))["source"])
    assert copy.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(copy.pixel_array, _source_values("MR"))


@pytest.mark.parametrize(("bits", "vr"), [(8, "OW"), (8, "OB"), (16, "OW"), (32, "OW")])
def test_the_copy_of_a_big_endian_source_has_its_pixels_at_any_width(write_source, bits, vr):
    path = write_source("CR", _source_values("CR"))
    dataset = pydicom.dcmread(path)
    values = np.arange(dataset.Rows * dataset.Columns).reshape(dataset.Rows, dataset.Columns) % 251
    values = values << (bits - 8)
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    encoded = values.astype(f">u{bits // 8}").tobytes()
    if (bits, vr) == (8, "OW"):
        encoded = np.frombuffer(encoded, "<u2").astype(">u2").tobytes()
    dataset["PixelData"] = DataElement("PixelData", vr, encoded)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(path, dataset, force_encoding=True, implicit_vr=False, little_endian=False)
    source = pydicom.dcmread(path)
    assert np.array_equal(source.pixel_array, values)
    content = io.BytesIO()
    deidentified(source, "c1", b"salt").save_as(content, enforce_file_format=True)
    content.seek(0)
    assert np.array_equal(pydicom.dcmread(content).pixel_array, values)


def test_values_that_the_standard_does_not_know_are_left_empty_where_the_patient_is_named(
    write_source, case_of, export
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = {"PatientSex": "U", "PatientBirthDate": "unknown", "StudyTime": "noon"}
        path = write_source("MR", _source_values("MR"), **odd)
    exported = replace(export, keep_identity=True).write(case_of(path, "L"))
    assert len(exported.files) == 8
    told = "PatientBirthDate, PatientSex, StudyTime: the value in its file is not valid DICOM, and is left empty"
    assert exported.left_out == (f"case 000000000001: {told}",)
    for file in exported.files:
        made = pydicom.dcmread(file)
        assert (made.PatientID, made.PatientSex, made.PatientBirthDate) == ("SECRET17", "", "")
        assert made.StudyDate == "20200102"


def _secretive(item: pydicom.Dataset) -> pydicom.Dataset:
    """An item with a name in a private element, and in a sequence within."""
    item.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "Doe")
    item.AnatomicRegionModifierSequence = [pydicom.Dataset()]
    item.AnatomicRegionModifierSequence[0].CodeMeaning = "of Jane Doe"
    return item


def _lookup(**more: object) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTExplanation = [4096, 0, 16], "by Doe"
    item.add_new("LUTData", "OW", np.arange(0, 8192, 2, dtype="<u2").tobytes())
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return _secretive(item)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_nothing_within_the_kept_sequences_names_the_patient(write_source, case_of, export, syntax):
    code, empty = pydicom.Dataset(), pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "72696002", "SCT", "Knee"
    code.CodingSchemeVersion, code.MappingResourceName = "1.0", "Doe"
    path = write_source(
        "DX",
        _source_values("DX"),
        AnatomicRegionSequence=[_secretive(code)],
        ViewCodeSequence=[_secretive(empty)],
        VOILUTSequence=[_lookup()],
        ModalityLUTSequence=[_lookup(ModalityLUTType="Doe's")],
        RescaleSlope=None,
        RescaleIntercept=None,
        RescaleType=None,
    )
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=True, force_encoding=True)
    exported = export.write(case_of(path, "R"))
    assert exported.left_out == ()
    assert [file for file in exported.files if b"Doe" in file.read_bytes()] == []
    copy = pydicom.dcmread(_named(exported)["source"])
    assert "ViewCodeSequence" not in copy, "nothing of it was left"
    (region,) = copy.AnatomicRegionSequence
    assert [element.keyword for element in region] == [
        "CodeValue",
        "CodingSchemeDesignator",
        "CodingSchemeVersion",
        "CodeMeaning",
    ]
    (lookup,) = copy.ModalityLUTSequence
    assert [element.keyword for element in lookup] == ["LUTDescriptor", "ModalityLUTType", "LUTData"]
    assert lookup.ModalityLUTType == "US"
    assert np.array_equal(read_pixels(_named(exported)["source"]).values, read_pixels(path).values)
