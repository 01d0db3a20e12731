"""The check lists every bad image of a manifest, and going on without them is on record."""

import numpy as np
import pydicom
import pytest

from knee.check import check_images, drop_bad
from knee.errors import UserError
from knee.grades import load_grade_set
from knee.images import write_png
from knee.manifest import read_manifest

IMAGE = np.arange(120, dtype=np.uint8).reshape(10, 12)


@pytest.fixture
def manifest(tmp_path):
    for name in ("good", "masked", "other_size", "grey_mask"):
        write_png(tmp_path / f"{name}.png", IMAGE)
    write_png(tmp_path / "flat.png", np.full((10, 12), 7, np.uint8))
    write_png(tmp_path / "m.png", (IMAGE > 60).astype(np.uint8))
    write_png(tmp_path / "small.png", np.ones((5, 6), np.uint8))
    (tmp_path / "short.png").write_bytes((tmp_path / "good.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no image")
    rows = ["good,", "masked,m.png", "other_size,small.png", "grey_mask,good.png", "flat,", "short,", "text,"]
    lines = [f"{name}.png,{i},,0,{mask}" for i, (name, mask) in enumerate(row.split(",") for row in rows)]
    (tmp_path / "manifest.csv").write_text("image,patient,side,grade,mask\n" + "\n".join(lines))
    return read_manifest(tmp_path / "manifest.csv", load_grade_set("kl"))


def test_all_bad_rows_are_listed_with_their_reason(manifest):
    bad = check_images(manifest, progress=False)
    assert [(row.line, row.image) for row in bad] == [
        (4, "other_size.png"),
        (5, "grey_mask.png"),
        (6, "flat.png"),
        (7, "short.png"),
        (8, "text.png"),
    ]
    reasons = [row.reason for row in bad]
    assert reasons[0] == "is 12 × 10 pixels, its mask 'small.png' 6 × 5; draw the mask on the image"
    assert "is not a mask: 120 different values" in reasons[1]
    assert reasons[2] == "is empty: all pixels are 7"
    assert reasons[3].startswith("is damaged (")
    assert reasons[4] == "is not a PNG, JPEG, WebP, TIFF, NPY, DICOM or NIfTI file"
    assert str(bad[2]) == "line 6: image 'flat.png' is empty: all pixels are 7"


def test_going_on_without_bad_rows(manifest, tmp_path):
    bad = check_images(manifest, progress=False)
    kept = drop_bad(manifest, bad, tmp_path / "rejected.csv")
    assert kept.table["image"].tolist() == ["good.png", "masked.png"]
    assert kept.table.index.tolist() == [0, 1]
    assert check_images(kept, progress=False) == []
    lines = (tmp_path / "rejected.csv").read_text().splitlines()
    assert lines[0] == "line,image,reason"
    assert lines[3] == "6,flat.png,is empty: all pixels are 7"
    with pytest.raises(UserError, match="exists already"):
        drop_bad(manifest, bad, tmp_path / "rejected.csv")
    with pytest.raises(UserError, match="all 2 rows are bad"):
        drop_bad(kept, [bad[0]] * 2, tmp_path / "again.csv")


def test_side_that_the_file_contradicts(tmp_path):
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 10, 12, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.ImageLaterality, image.PixelData = "R", IMAGE.tobytes()
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (tmp_path / "manifest.csv").write_text("image,patient,side,grade,mask\na.dcm,1,L,0,\n")
    (bad,) = check_images(read_manifest(tmp_path / "manifest.csv", load_grade_set("kl")), progress=False)
    assert bad.reason == "is of side R by its file, L by the manifest; mend the side"
