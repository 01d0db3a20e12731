"""A name planted in every identity field of the input is found nowhere in a run folder but in local/."""

from __future__ import annotations

import base64
import gzip
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from dcmt.cli import main
from dcmt.config import GraderConfig
from knee.review.dicom.identity import KEPT

MARKER = "Mustermann"
BORN = "19370219"
MACHINE = "workstation-of-dr-marker"
"""What the machine is called."""
ROOT_UID = "1.2.3.77345112907"
TEXT = ("PN", "LO", "SH", "ST", "LT", "UT", "AE", "UC")
FORMATS = (".png", ".jpg", ".tif", ".dcm", ".nii", ".nii.gz", ".npy")


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """An MR slice: the marker in every text of the standard that is not of the image itself, and in a private block."""
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID, image.file_meta.SourceApplicationEntityTitle = ExplicitVRLittleEndian, MARKER
    for tag, (kind, multiplicity, _, retired, keyword) in DicomDictionary.items():
        if retired or not keyword or keyword in KEPT or not 0x0008 <= tag >> 16 < 0x0060:
            continue
        if kind in TEXT and multiplicity.startswith("1"):
            image.add_new(tag, kind, f"{MARKER}^Max" if kind == "PN" else MARKER)
        elif kind == "DA" and multiplicity.startswith("1"):
            image.add_new(tag, kind, BORN)
    image.private_block(0x0009, MARKER, create=True).add_new(1, "LO", MARKER)
    image.SOPClassUID = MRImageStorage
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        setattr(image, keyword, f"{ROOT_UID}.{len(keyword)}.{zlib.crc32(path.name.encode())}")
    image.SpecificCharacterSet, image.Modality, image.ImageType = "ISO_IR 192", "MR", ["ORIGINAL", "PRIMARY"]
    image.ReferencedImageSequence = [pydicom.Dataset()]
    image.ReferencedImageSequence[0].ReferencedSOPInstanceUID = f"{ROOT_UID}.9"
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelSpacing, image.SliceThickness = [0.4, 0.4], 3
    image.ImageOrientationPatient, image.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [-40, -60, 60]
    image.PixelData = pixels.astype(np.uint16).tobytes()
    code = {"CodeValue": "72696002", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Knee"}
    lookup = {"LUTDescriptor": [256, 0, 16], "LUTExplanation": MARKER, "LUTData": np.arange(256, dtype="<u2").tobytes()}
    image.AnatomicRegionSequence, image.ViewCodeSequence = [nested(code)], [nested(code)]
    image.VOILUTSequence, image.ModalityLUTSequence = [nested(lookup)], [nested(lookup | {"ModalityLUTType": MARKER})]
    image.save_as(path, enforce_file_format=True)


def nested(values: dict[str, Any]) -> pydicom.Dataset:
    """An item of a sequence with these values, the marker in a private element and in texts of the item and within."""
    item, within = pydicom.Dataset(), pydicom.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    item.private_block(0x0009, MARKER, create=True).add_new(1, "LO", MARKER)
    within.CodeMeaning = item.MappingResourceName = MARKER
    item.AnatomicRegionModifierSequence = [within]
    return item


def write_image(path: Path, suffix: str, pixels: np.ndarray) -> None:
    """The pixels in a format, the marker in every text that the format has a place for."""
    if suffix == ".dcm":
        write_dicom(path, pixels)
    elif suffix == ".png":
        texts = PngInfo()
        texts.add_text("Author", MARKER)
        texts.add_text("Comment", MARKER, zip=True)
        texts.add_itxt("Title", MARKER)
        Image.fromarray(pixels).save(path, pnginfo=texts)
    elif suffix == ".jpg":
        exif = Image.Exif()
        exif[0x010E] = exif[0x013B] = MARKER
        Image.fromarray(pixels).save(path, quality=95, exif=exif, comment=MARKER)
    elif suffix == ".tif":
        Image.fromarray(pixels).save(path, tiffinfo={270: MARKER, 315: MARKER, 316: MARKER})
    elif suffix == ".npy":
        np.save(path, pixels)
    else:
        volume = nibabel.Nifti1Image(pixels.T.astype(np.int16), np.diag([0.4, 0.4, 3, 1]))
        for field in ("descrip", "aux_file", "db_name", "intent_name"):
            volume.header[field] = MARKER.encode()
        volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", MARKER.encode()))
        nibabel.save(volume, path)


@pytest.fixture(scope="module")
def private_data(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom in all formats, its folders, files, patients and free columns called by the marker."""
    data = tmp_path_factory.mktemp("private") / f"study_{MARKER}"
    shutil.copytree(phantom.parent, data, ignore=shutil.ignore_patterns("cache", "truth*", ".case_salt"))
    table = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False)
    split = pd.read_csv(data / "split.csv", dtype=str, keep_default_na=False)
    renamed = {
        name: f"images/{MARKER}_{number}{FORMATS[number % len(FORMATS)]}" for number, name in enumerate(table["image"])
    }
    for number, (old, new) in enumerate(renamed.items()):
        pixels = cv2.imread(str(data / old), cv2.IMREAD_GRAYSCALE)
        (data / old).unlink()
        write_image(data / new, FORMATS[number % len(FORMATS)], pixels)
    table["image"], split["image"] = table["image"].map(renamed), split["image"].map(renamed)
    table["patient"] = MARKER + table["patient"]
    table["report"] = f"Mr {MARKER} fell"
    table.to_csv(data / "manifest.csv", index=False)
    split.to_csv(data / f"{MARKER}.csv", index=False)
    return data


@pytest.fixture(scope="module")
def private_run(private_data: Path) -> Path:
    """A run on them, evaluated, looked at, checked and exported for review in every format."""
    folder = private_data.parent
    options = {
        "data.manifest": private_data / "manifest.csv",
        "data.split": private_data / f"{MARKER}.csv",
        "data.cache": folder / f"cache_{MARKER}",
        "data.labeled_fraction": 0.6,
        "data.image_size": 48,
        "data.labeled_per_batch": 4,
        "data.unlabeled_per_batch": 2,
        "model.backbone": "resnet10t",
        "model.stage": 2,
        "model.stride": 8,
        "fit.steps": 2,
        "fit.validate_every": 2,
        "fit.precision": "fp32",
        "fit.device": "cpu",
        "report.bootstrap": 100,
        "report.cases": 2,
        "runs": folder,
        "name": "run",
    }
    run = str(folder / "run")
    for command in (
        ["train", *(f"--{name}={value}" for name, value in options.items())],
        ["evaluate", run],
        ["attention", run, "--cases", "2"],
        ["review", "sanity", run, "--steps", "2", "--images", "2"],
        ["review", "export", run, "--split", "test", "--format", "html,png,nifti,dicom"],
        ["review", "export", run, "--cases", "2"],
    ):
        device = [] if command[0] == "train" else ["--device", "cpu"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("socket.gethostname", lambda: MACHINE)
            assert main([*command, *device]) == 0, command
    return folder / "run"


def shared(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if "local" not in path.relative_to(run).parts]


def contents(data: bytes) -> Iterator[bytes]:
    """The bytes of a file, and what is packed in them: gzip, base64, compressed texts of PNG files."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(data))
    for coded in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
        yield from contents(base64.b64decode(coded))
    for start in (found.end() for found in re.finditer(rb"\x89PNG\r\n\x1a\n", data)):
        while start + 8 <= len(data):
            length, kind = struct.unpack(">I4s", data[start : start + 8])
            if kind in (b"zTXt", b"iCCP"):
                yield zlib.decompress(data[start + 8 : start + 8 + length].partition(b"\0")[2][1:])
            start += length + 12
            if kind == b"IEND":
                break


def names_someone(path: Path, more: tuple[str, ...] = ()) -> bool:
    """Whether a file holds the marker, the date or the identifiers, or any of ``more``."""
    texts = [MARKER, MARKER.lower(), MARKER.upper(), BORN, ROOT_UID, *more]
    needles = [text.encode(code) for text in texts for code in ("utf-8", "utf-16-le")]
    return any(needle in part for part in contents(path.read_bytes()) for needle in needles)


def test_the_search_finds_the_marker_in_every_format_that_has_a_place_for_it(
    private_data: Path, tmp_path: Path
) -> None:
    for suffix in FORMATS[:-1]:
        images = list((private_data / "images").glob(f"*{suffix}"))
        assert images
        assert all(names_someone(path) for path in images), suffix
    texts = PngInfo()
    texts.add_text("Comment", MARKER, zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=texts)
    packed = b"...data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes())
    (tmp_path / "a.html").write_bytes(packed)
    assert MARKER.encode() not in packed
    assert names_someone(tmp_path / "a.html")


def test_no_byte_outside_local_names_anyone_or_a_place(private_run: Path, private_data: Path) -> None:
    files = [path for path in shared(private_run) if path.is_file()]
    places = (str(private_data.parent), str(Path.home() / "."), str(private_run.parent))
    assert [path for path in files if names_someone(path, tuple(place for place in places if len(place) > 6))] == []


def test_all_kinds_of_output_were_searched(private_run: Path) -> None:
    files = [path.relative_to(private_run).as_posix() for path in shared(private_run) if path.is_file()]
    for kind in (
        r"config\.yaml", r"metrics\.csv", r"metrics_test\.json", r"sanity\.json", r"tensorboard/.*tfevents.*",
        r"figures/confusion_test\.png", r"figures/sanity\.png", r"attention_test/.*\.png",
        r"checkpoints/step_\d+/state\.json", r"checkpoints/step_\d+/teacher\.safetensors", r"checkpoints/best\.json",
        r"review/test/review\.html", r"review/test/png/.*\.png", r"review/test/nifti/.*\.nii\.gz",
        r"review/test/dicom/.*_source\.dcm", r"review/test/dicom/.*_capture\.dcm", r"review/unlabeled/review\.html",
    ):  # fmt: skip
        assert [name for name in files if re.fullmatch(kind, name)], kind


def test_nothing_outside_local_names_the_machine(private_run: Path) -> None:
    events = [path for path in shared(private_run) if "tfevents" in path.name]
    assert events
    places = [*shared(private_run)]
    assert [path for path in places if MACHINE in path.name] == []
    files = [path for path in places if path.is_file()]
    assert [path for path in files if any(MACHINE.encode() in part for part in contents(path.read_bytes()))] == []


def test_no_name_outside_local_holds_the_marker(private_run: Path) -> None:
    assert [path for path in shared(private_run) if MARKER.lower() in path.name.lower()] == []


def test_what_names_people_is_in_local_and_for_the_owner_alone(private_run: Path) -> None:
    local = private_run / "local"
    assert local.stat().st_mode & 0o077 == 0
    holding = {path.name for path in local.iterdir() if names_someone(path)}
    assert {"cases.csv", "split.csv", "paths.yaml", "predictions_test.csv", "review_key.csv"} <= holding
    assert [path.name for path in local.iterdir() if path.stat().st_mode & 0o777 != 0o600] == []


def test_salt_is_the_data_sets_own_and_for_its_owner_alone(
    private_data: Path, private_run: Path, phantom: Path
) -> None:
    from knee.data.cases import case_name, load_salt

    place = private_data / ".case_salt"
    assert place.stat().st_mode & 0o777 == 0o600
    assert load_salt(phantom) != load_salt(private_data / "manifest.csv")
    key = pd.read_csv(private_run / "local" / "cases.csv", dtype=str)
    assert key["case"].is_unique
    assert key["case"].tolist() == [case_name(load_salt(private_data / "manifest.csv"), name) for name in key["image"]]
    assert not [
        path for path in shared(private_run) if path.is_file() and place.read_bytes().strip() in path.read_bytes()
    ]


def test_list_of_rows_left_out_is_for_the_owner_alone(
    private_data: Path, grader_values: dict[str, Any], tmp_path: Path
) -> None:
    table = pd.read_csv(private_data / "manifest.csv", dtype=str, keep_default_na=False)
    split = private_data / f"{MARKER}.csv"
    (private_data / "images" / "damaged.png").write_bytes(b"x")
    bad = table.copy()
    bad.loc[0, "image"] = "images/damaged.png"
    bad.to_csv(private_data / "bad.csv", index=False)
    lines = split.read_text().replace(table.loc[0, "image"], "images/damaged.png")
    (private_data / "bad_split.csv").write_text(lines)
    options = [
        "train", "--skip-bad", "--fit.steps=1", "--report.tensorboard=false", f"--runs={tmp_path}", "--name=run",
        f"--data.manifest={private_data / 'bad.csv'}", f"--data.split={private_data / 'bad_split.csv'}",
        *(f"--model.{name}={value}" for name, value in grader_values["model"].items()),
        "--data.image_size=48", "--data.labeled_fraction=0.6", "--data.labeled_per_batch=4", "--fit.device=cpu",
        "--data.unlabeled_per_batch=2", "--fit.precision=fp32",
    ]  # fmt: skip
    assert main(options) == 0
    assert (tmp_path / "run" / "local" / "rejected.csv").stat().st_mode & 0o777 == 0o600
    assert not [path for path in shared(tmp_path / "run") if path.is_file() and names_someone(path)]


def test_a_run_without_its_local_folder_still_grades(private_run: Path, tmp_path: Path, phantom: Path) -> None:
    shutil.copytree(private_run, tmp_path / "shown", ignore=shutil.ignore_patterns("local"))
    image = sorted((phantom.parent / "images").iterdir())[0]
    arguments = ["predict", str(tmp_path / "shown"), str(image), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 0
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 1


def test_config_of_the_run_is_still_whole(private_run: Path, grader_config: Callable[..., GraderConfig]) -> None:
    from dcmt.trained.loaded import load_run

    assert MARKER in load_run(private_run, checkpoint="last", device="cpu").config.data.manifest
