"""What of a folder is an image: DICOM objects that are not are left out and listed."""

import errno
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from knee.data.cache import build_cache
from knee.data.manifest import read_manifest
from knee.errors import Faults
from knee.intake.folders import manifest_from_folder
from knee.intake.scan import image_files
from knee.io.own_folders import MARK, mark_as_own

from .samples import KL, touch, written

NOT_IMAGES = {
    "Segmentation": pydicom.uid.SegmentationStorage,
    "Basic Text SR": pydicom.uid.BasicTextSRStorage,
    "Grayscale Softcopy Presentation State": pydicom.uid.GrayscaleSoftcopyPresentationStateStorage,
    "Key Object Selection Document": pydicom.uid.KeyObjectSelectionDocumentStorage,
    "Encapsulated PDF": pydicom.uid.EncapsulatedPDFStorage,
    "X-Ray Radiation Dose SR": pydicom.uid.XRayRadiationDoseSRStorage,
}
IMAGES = [
    pydicom.uid.ComputedRadiographyImageStorage,
    pydicom.uid.DigitalXRayImageStorageForPresentation,
    pydicom.uid.DigitalXRayImageStorageForProcessing,
    pydicom.uid.MRImageStorage,
    pydicom.uid.EnhancedMRImageStorage,
    pydicom.uid.CTImageStorage,
    pydicom.uid.SecondaryCaptureImageStorage,
    "1.2.826.0.1.3680043.8.498.1",
]


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_objects_without_a_knee_are_left_out_and_listed(study, kind, caplog):
    study.draw_dicom("1/a.dcm", PatientID="A")
    study.draw_dicom("3/b.dcm", PatientID="B")
    study.draw_dicom("3/IM2", kind=NOT_IMAGES[kind], PatientID="B")
    assert study.grades() == {"1/a.dcm": 1, "3/b.dcm": 3}
    assert f"1 DICOM file left out, not images of a knee ({kind}: 1 ('3/IM2' first))" in study.notes()
    with caplog.at_level(logging.WARNING):
        assert image_files(study.images) == ["1/a.dcm", "3/b.dcm"]
    assert f"{kind}: 1" in caplog.text


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_all_classes_are_found(study, kind):
    study.draw_dicom("a.dcm", kind=kind)
    assert image_files(study.images) == ["a.dcm"]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, True),
        ({"ImageType": ["ORIGINAL", "SECONDARY"], "ConversionType": "DF"}, True),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, False),
        ({"ConversionType": "SD"}, False),
    ],
)
def test_a_digitised_film_is_an_image_and_a_capture_of_a_result_is_not(study, fields, found):
    study.draw_dicom("a.dcm", kind=pydicom.uid.SecondaryCaptureImageStorage, **fields)
    assert bool(image_files(study.images)) == found


def test_a_folder_of_nothing_else_lists_what_it_holds(study):
    study.draw_dicom("seg.dcm", kind=pydicom.uid.SegmentationStorage)
    assert "contains no images" in study.refusal()
    assert "Segmentation: 1 ('seg.dcm' first)" in study.refusal()


def test_a_scan_does_not_leave_the_folder(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    touch(data, "train/2/1L.png")
    touch(other, "0/2R.png")
    (data / "train/2/again.png").symlink_to("1L.png")
    (data / "again").symlink_to("train")
    (data / ".store").mkdir()
    touch(data, ".store/kept.png")
    (data / "train/2/3L.png").symlink_to("../../.store/kept.png")
    assert manifest_from_folder(data)["image"].tolist() == ["train/2/1L.png", "train/2/3L.png"]
    (data / "train/2/2R.png").symlink_to(other / "0/2R.png")
    (data / "test").symlink_to(other)
    (data / "train/2/4L.png").symlink_to("gone.png")
    (data / "train/2/5L.png").symlink_to("5L.png")
    with pytest.raises(Faults, match="4 links lead out of the folder; put the files themselves there") as caught:
        manifest_from_folder(data)
    assert caught.value.faults == (
        f"test: is a link to {other}",
        f"train/2/2R.png: is a link to {other / '0/2R.png'}",
        "train/2/4L.png: is a link to nowhere",
        "train/2/5L.png: is a link to nowhere",
    )
    # Who writes a path in a manifest means it.
    path = written(tmp_path, "data/train/2/2R.png,1,R,2,", "other/0/2R.png,2,R,2,")
    assert len(read_manifest(path, KL).table) == 2


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "0/1L.png", "2/3L.png", "4/5L.png", ".git/7L.png")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name in ("2", "4", ".git"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(Faults, match="2 folders cannot be read, so patients may be missing") as caught:
        manifest_from_folder(tmp_path)
    assert caught.value.faults == (f"{tmp_path / '2'}: Permission denied", f"{tmp_path / '4'}: Permission denied")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_all_listed(tmp_path):
    touch(tmp_path, "0/1L.png", "0/ä_L.png")
    for name in (b"M\xfcller_1.png", b"b\xe4/2.png", b"no\xe4.txt"):
        path = tmp_path / "0" / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "0/1L.png").read_bytes())
    with pytest.raises(
        Faults, match="2 files whose names are not UTF-8 text, which a table cannot contain; rename"
    ) as caught:
        manifest_from_folder(tmp_path)
    assert caught.value.faults == (r"0/M\udcfcller_1.png", r"0/b\udce4/2.png")
    str(caught.value).encode()


def test_folders_that_the_toolkit_wrote_hold_no_images(tmp_path):
    touch(tmp_path, "2/1L.png", "0/2R.png")
    paths = [tmp_path / "2/1L.png", tmp_path / "0/2R.png"]
    cache = build_cache(paths, [None, None], tmp_path / "cache", size=8, progress=False)
    mark_as_own(tmp_path / "graded" / "overlays")
    touch(tmp_path, "graded/overlays/2/1L.png.png", "runs/one/figures/roc.png")
    (tmp_path / "runs/one/local").mkdir()
    (tmp_path / "runs/one/config.yaml").write_text("kind: grader\n")
    assert image_files(tmp_path) == ["0/2R.png", "2/1L.png"]
    assert manifest_from_folder(tmp_path)["image"].tolist() == ["0/2R.png", "2/1L.png"]
    # A cache that an earlier version wrote has no mark.
    (cache.folder / MARK).unlink()
    assert image_files(tmp_path) == ["0/2R.png", "2/1L.png"]
    # Who names such a folder means it, and an array of one's own may be called like one of a cache.
    assert len(image_files(tmp_path / "graded/overlays")) == 1
    np.save(tmp_path / "0" / "images.npy", np.arange(64.0).reshape(8, 8))
    assert len(image_files(tmp_path)) == 3
