"""The check lists every bad image of a manifest, and going on without them is on record."""

import numpy as np
import pydicom
import pytest

from knee.data.check import check_data, check_images, drop_bad
from knee.errors import Faults, UserError
from knee.grades import load_grade_set
from knee.images.read import write_png
from knee.phantom import draw_radiograph
from knee.phantom.scenes import draw_scene

KL = load_grade_set("kl")
IMAGE = np.arange(120, dtype=np.uint8).reshape(10, 12)


@pytest.fixture
def path(tmp_path):
    for number, name in enumerate(("good", "masked", "other_size", "grey_mask")):
        write_png(tmp_path / f"{name}.png", np.roll(IMAGE, number))
    write_png(tmp_path / "flat.png", np.full((10, 12), 7, np.uint8))
    write_png(tmp_path / "m.png", (IMAGE > 60).astype(np.uint8))
    write_png(tmp_path / "small.png", np.ones((5, 6), np.uint8))
    (tmp_path / "short.png").write_bytes((tmp_path / "good.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no image")
    rows = ["good,,0", "masked,m.png,0", "other_size,small.png,0", "grey_mask,good.png,KL1", "flat,short.png,0"]
    rows += ["short,,0", "text,,0", "gone,none.png,0", "good,,0"]
    lines = [f"{name}.png,{name},,{grade},{mask}" for name, mask, grade in (row.split(",") for row in rows)]
    path = tmp_path / "manifest.csv"
    path.write_text("image,patient,side,grade,mask\n" + "\n".join(lines))
    return path


def test_everything_that_is_wrong_is_listed_with_line_and_reason(path):
    bad = check_data(path, KL, progress=False).bad
    reasons = [
        (4, "mask 'small.png' has 6 × 5 pixels, its image 12 × 10; draw the mask on the image"),
        (5, "grade 'KL1' is not 0–4 or empty; write 1"),
        (5, "mask 'good.png' is not a mask: 120 different values"),
        (6, "image 'flat.png' is empty: all pixels are 7"),
        (6, "mask 'short.png' is damaged ("),
        (7, "image 'short.png' is damaged ("),
        (8, "image 'text.png' is not a PNG, JPEG, WebP, TIFF, NPY, DICOM or NIfTI file"),
        (9, "image 'gone.png' is not a file below"),
        (9, "mask 'none.png' is not a file below"),
        (10, "image 'good.png' is already on line 2; remove one of the two"),
    ]
    assert [row.line for row in bad] == [line for line, _ in reasons]
    for row, (_, reason) in zip(bad, reasons, strict=True):
        assert row.reason.startswith(reason)
        assert "\n" not in row.reason


def test_images_alone_tell_absent_files_too(path):
    found = check_data(path, KL, progress=False)
    told = check_images(found.manifest, progress=False)
    assert [row.reason for row in told if row.line == 9] == [
        f"{what} cannot be read (No such file or directory)" for what in ("image 'gone.png'", "mask 'none.png'")
    ]


def test_going_on_without_bad_rows(path, tmp_path):
    found = check_data(path, KL, progress=False)
    kept = drop_bad(found, tmp_path / "rejected.csv")
    assert kept.table["image"].tolist() == ["good.png", "masked.png"]
    assert kept.table.index.tolist() == [0, 1]
    assert check_images(kept, progress=False) == []
    lines = (tmp_path / "rejected.csv").read_text().splitlines()
    assert lines[0] == "line,image,reason"
    assert lines[4] == "6,flat.png,image 'flat.png' is empty: all pixels are 7"
    assert len(lines) == 11
    with pytest.raises(UserError, match="exists already"):
        drop_bad(found, tmp_path / "rejected.csv")
    drop_bad(found, tmp_path / "rejected.csv", force=True)


def test_nothing_left(path, tmp_path):
    path.write_text("image,patient,side,grade,mask\na.png,1,,0,\n1,2\n")
    with pytest.raises(UserError, match=r"all 2 rows are bad; the first: line 2: image 'a.png' is not a file"):
        drop_bad(check_data(path, KL, progress=False), tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def test_patient_in_two_splits_is_not_skipped(path, tmp_path):
    path.write_text("image,patient,side,grade,mask,split\ngood.png,1,,0,,train\nmasked.png,1,,9,,test\n")
    with pytest.raises(Faults, match=r"manifest.csv line 3: patient '1' is in train \(line 2\) and test \(line 3\)"):
        drop_bad(check_data(path, KL, progress=False), tmp_path / "r.csv")
    assert not (tmp_path / "r.csv").exists()


def write_dicom(path, pixels, **fields):
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3"
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(image, name, value)
    image.save_as(path, enforce_file_format=True)


def checked(folder, *rows):
    (folder / "manifest.csv").write_text("\n".join(["image,patient,side,grade,mask", *rows]))
    return check_data(folder / "manifest.csv", KL, progress=False)


def test_side_that_the_file_contradicts(tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE, ImageLaterality="R")
    found = checked(tmp_path, "a.dcm,1,L,0,")
    (bad,) = check_images(found.manifest, progress=False)
    assert bad.reason == "image 'a.dcm' is of side R in its file, L in the manifest; fix the side"
    assert found.bad == (bad,)
    assert found.remarks == ()


def test_side_that_only_the_file_tells_is_a_remark(tmp_path):
    write_dicom(tmp_path / "a.dcm", IMAGE, ImageLaterality="R")
    write_dicom(tmp_path / "b.dcm", IMAGE[::-1])
    found = checked(tmp_path, "a.dcm,1,,0,", "b.dcm,2,,0,")
    assert found.faults() == []
    (remark,) = found.remarks
    assert remark.startswith("1 image (line 2) without a side in the manifest, although the file has it")


def test_one_patient_id_under_two_patients_is_a_leak(tmp_path):
    for number, person in enumerate("XXY"):
        write_dicom(tmp_path / f"{number}.dcm", np.roll(IMAGE, number), PatientID=person)
    found = checked(tmp_path, "0.dcm,1,,0,", "1.dcm,2,,0,", "2.dcm,3,,0,")
    assert found.bad == ()
    assert found.faults() == [
        "manifest.csv line 3: image '1.dcm' is of patient '2', '0.dcm' (line 2) of '1', but both files have the same "
        "PatientID; write one patient"
    ]
    with pytest.raises(Faults, match="1 error of patients in two splits or under two names, which cannot be skipped"):
        drop_bad(found, tmp_path / "r.csv")
    assert checked(tmp_path, "0.dcm,1,,0,", "1.dcm,1,,0,", "2.dcm,3,,0,").faults() == []


def test_a_blanked_patient_id_is_a_remark(tmp_path):
    for number in range(3):
        write_dicom(tmp_path / f"{number}.dcm", np.roll(IMAGE, number), PatientID="ANONYMOUS")
    found = checked(tmp_path, "0.dcm,1,,0,", "1.dcm,2,,0,", "2.dcm,3,,0,")
    assert found.faults() == []
    (remark,) = found.remarks
    assert remark.startswith("all 3 DICOM files with a PatientID have the same one, but the manifest has 3 patients")
    assert "ANONYMOUS" not in remark


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_the_same_pixels_of_another_patient_or_grade_are_faults(tmp_path, kind):
    values = IMAGE.astype(kind) * kind(1 if kind is np.uint8 else 257)
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", values)
    np.save(tmp_path / "turned.npy", values.reshape(12, 10))
    values[0, 0] += 1
    np.save(tmp_path / "almost.npy", values)
    found = checked(tmp_path, "a.npy,1,L,0,", "b.npy,2,L,3,", "almost.npy,3,,0,", "turned.npy,4,,0,", "c.npy,1,,,")
    assert found.faults() == [
        "manifest.csv line 2: image 'a.npy' has the same pixels as 'b.npy' (line 3), but another patient and grade; keep the "
        "correct row",
        "manifest.csv line 3: image 'b.npy' has the same pixels as 'a.npy' (line 2), but another patient and grade; keep the "
        "correct row",
        "manifest.csv line 6: image 'c.npy' has the same pixels as 'b.npy' (line 3), but another patient; keep the correct "
        "row",
    ]
    assert checked(tmp_path, "a.npy,1,L,0,", "c.npy,1,,,").faults() == []
    assert "but another side;" in checked(tmp_path, "a.npy,1,L,0,", "c.npy,1,R,0,").faults()[0]
    # One file on two lines is told once.
    assert len(checked(tmp_path, "a.npy,1,L,0,", "./a.npy,2,L,0,").faults()) == 2


def test_images_of_two_knees_are_a_remark_whatever_their_shape(tmp_path):
    pair = draw_scene(seed=7, number=0, kind="both", longest=240).image
    tall = np.pad(pair, ((0, max(0, pair.shape[1] - pair.shape[0])), (0, 0)))
    one = draw_radiograph(seed=7, patient=0, side="L", size=120).image
    wide = np.pad(one, ((0, 0), (60, 60)))
    for name, image in (("pair", pair), ("tall", tall), ("one", one), ("wide", wide)):
        write_png(tmp_path / f"{name}.png", image)
    found = checked(tmp_path, *(f"{name}.png,{name},,0," for name in ("pair", "tall", "one", "wide")))
    assert found.faults() == []
    (remark,) = found.remarks
    assert remark.startswith(
        "2 images (lines 2, 3) of two knees, but an image is graded as one; make one image per knee"
    )


@pytest.mark.parametrize(
    ("patients", "pairs"), [("9001L 9001R 9002L", 1), ("P_L P_R 7-L 7-R", 2), ("9001L 9002R ML MR", 0)]
)
def test_patients_that_differ_only_in_a_side_are_a_remark(tmp_path, patients, pairs):
    rows = []
    for number, patient in enumerate(patients.split()):
        write_png(tmp_path / f"{number}.png", np.roll(IMAGE, number))
        rows.append(f"{number}.png,{patient},,0,")
    (tmp_path / "m.csv").write_text("image,patient,side,grade,mask\n" + "\n".join(rows))
    remarks = [
        text for text in check_data(tmp_path / "m.csv", KL, progress=False).remarks if "differ only in a side" in text
    ]
    assert len(remarks) == bool(pairs)
    assert all(text.startswith(f"{pairs} pair") for text in remarks)


def test_masks_that_mark_nothing_or_the_background_are_worth_a_look(tmp_path):
    masks = {"drawn": IMAGE > 100, "half": IMAGE >= 60, "empty": IMAGE < 0, "inverted": IMAGE <= 100}
    rows = []
    for number, (name, mask) in enumerate(masks.items()):
        write_png(tmp_path / f"{name}.png", np.roll(IMAGE, number))
        write_png(tmp_path / f"m_{name}.png", mask.astype(np.uint8) * 255)
        rows.append(f"{name}.png,{name},,0,m_{name}.png")
    (tmp_path / "manifest.csv").write_text("image,patient,side,grade,mask\n" + "\n".join(rows) + "\n")
    found = check_data(tmp_path / "manifest.csv", KL, progress=False)
    assert not found.bad
    nothing, background = found.remarks
    assert nothing.startswith("1 mask (line 4) with nothing marked")
    assert background.startswith("1 mask (line 5) over more than half of the image")
