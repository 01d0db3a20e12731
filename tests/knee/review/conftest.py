"""A made-up case for every need, and a real browser where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from knee.grades import load_grade_set
from knee.images.original import Source, shown_original
from knee.images.read import prepare, read_pixels
from knee.review.cases import NetworkView, ReviewCase
from knee.review.key import KeyedCase
from knee.review.page.html import HtmlWriter, ReviewRun

from .readings import GRADES

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def run() -> ReviewRun:
    return ReviewRun("phantom_10pct", "3f9ac2d17be04410", load_grade_set("kl"))


@pytest.fixture(scope="session")
def make_case() -> Callable[..., ReviewCase]:
    """``make_case(number, **changes)``: the same case for the same number; K = 5, 128 px, 16 × 16 maps.

    ``source`` may be a path, with ``geometry``.
    """

    def make(number: int, **changes: object) -> ReviewCase:
        rng = np.random.default_rng(number)
        y, x = np.mgrid[0:128, 0:128]
        image = np.clip(90 + 60 * np.sin(x / 9) + rng.normal(0, 12, (128, 128)), 0, 255).astype(np.uint8)
        views = [NetworkView(rng.dirichlet(np.full(5, 0.6)), _blob(rng), decision="median") for _ in range(2)]
        values: dict[str, object] = {
            "case": f"{number:012x}",
            "image": image,
            "student": views[0],
            "teacher": views[1],
            "flip_disagreement": float(rng.random()),
            "split": "unlabeled" if number % 3 else "train",
            "grade": None if number % 3 else int(rng.integers(5)),
            "side": "LR"[number % 2],
            "cartilage": (abs(y - 64) < 8) & (abs(x - 64) < 40),
            "overlap": float(rng.random()),
        }
        if "geometry" in changes:
            changes["source"] = Source(changes["source"], changes.pop("geometry"))  # type: ignore[arg-type]
        return ReviewCase(**(values | changes))  # type: ignore[arg-type]

    return make


def _blob(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:16, 0:16]
    row, column = rng.uniform(4, 12, 2)
    return (2 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 6) + 0.1 * rng.random((16, 16))).astype(np.float32)


@pytest.fixture(scope="session")
def write_page() -> Callable[..., int]:
    """``write_page(path, run, cases, force=False)``: the review file of the cases; their number."""

    def write(path: Path, run: ReviewRun, cases: Iterable[ReviewCase], *, force: bool = False) -> int:
        count = 0
        with HtmlWriter(path, run, force=force) as page:
            for case in cases:
                page.add(case, shown_original(case.source, case.image))
                count += 1
        return count

    return write


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[..., Path]:
    """``write_source("MR"|"DX"|"CR", values (H, W) uint16, **attributes)``: a DICOM file that names a patient."""

    def write(kind: str, values: np.ndarray, **attributes: object) -> Path:
        dataset = _KINDS[kind](values)
        for keyword, value in attributes.items():
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        path = tmp_path / f"{kind}_{len(list(tmp_path.iterdir()))}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


def _common(values: np.ndarray, sop_class: str, modality: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "SECRET17", "19500101"
    dataset.PatientSex, dataset.StudyDate, dataset.StudyTime = "F", "20200102", "101112"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "ACC9", "S1", "House^G"
    dataset.InstitutionName, dataset.Manufacturer = "Hospital", "ACME"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = modality, 3, 7
    dataset.BodyPartExamined, dataset.SeriesDescription = "KNEE", "Doe knee"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = np.ascontiguousarray(values, np.uint16).tobytes()
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    return dataset


def _mr(values: np.ndarray) -> Dataset:
    dataset = _common(values, "1.2.840.10008.5.1.4.1.1.4", "MR")
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "SK", ""
    dataset.MRAcquisitionType, dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = "2D", 2000, 30, 8
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = generate_uid(), ""
    dataset.PixelSpacing, dataset.SliceThickness = [0.4, 0.4], 3
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [-40, -60, 60]
    dataset.Laterality, dataset.PatientPosition = "L", "FFS"
    return dataset


def _dx(values: np.ndarray) -> Dataset:
    dataset = _common(values, "1.2.840.10008.5.1.4.1.1.1.1", "DX")
    dataset.PresentationIntentType, dataset.ImageLaterality = "FOR PRESENTATION", "R"
    dataset.ImagerPixelSpacing, dataset.PatientOrientation = [0.2, 0.2], ["L", "F"]
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "US"
    dataset.PresentationLUTShape, dataset.LossyImageCompression = "IDENTITY", "00"
    dataset.BurnedInAnnotation, dataset.DetectorType, dataset.PositionerType = "NO", "DIRECT", ""
    dataset.AcquisitionContextSequence = []
    dataset.AnatomicRegionSequence, dataset.WindowCenter, dataset.WindowWidth = [_knee()], 2048, 4096
    return dataset


def _cr(values: np.ndarray) -> Dataset:
    dataset = _common(values, "1.2.840.10008.5.1.4.1.1.1", "CR")
    dataset.ImagerPixelSpacing, dataset.ViewPosition, dataset.Laterality = [0.2, 0.2], "AP", "R"
    dataset.PatientOrientation = None
    return dataset


def _knee() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "72696002", "SCT", "Knee"
    return item


_KINDS = {"MR": _mr, "DX": _dx, "CR": _cr}


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Chromium through its own driver; ``browser.downloads`` is where it saves files."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("the review file is tested in Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="Chromium is driven by selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    downloads = tmp_path_factory.mktemp("downloads")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1440,900"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.downloads = Path(downloads)
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.csv"


@pytest.fixture
def key() -> dict[str, KeyedCase]:
    return {
        f"c{name}": KeyedCase(f"c{name}", f"{name}.png", f"p{name}", "test" if name == "f" else "unlabeled", 1, 2)
        for name in GRADES
    }


SIZE = 128


@pytest.fixture
def case_of(make_case):
    def make(source, side="R"):
        image, geometry = prepare(read_pixels(source).values, SIZE, mirror=side == "L")
        evidence = np.zeros((16, 16), np.float32)
        evidence[4, 11] = 2.0
        view = replace(make_case(1).teacher, class_map=evidence)
        changes = {"image": image, "geometry": geometry, "source": source, "cartilage": None}
        return make_case(1, student=view, teacher=view, side=side, **changes)

    return make
