"""Real viewers, fetched by ``make viewers``; where a part is missing, a test says so and is skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.knee.review.conftest import browser, make_case, run, write_page  # noqa: F401
from tests.knee.review.page.conftest import open_page  # noqa: F401
from tests.orthanc import running_orthanc
from tests.viewers.painted import write_radiographs, write_studies
from tests.viewers.site import ohif_site

PARTS = Path(__file__).parent.parent.parent / ".viewers"
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # OHIF draws with WebGL, here by software.
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=1400,1000",
)


def part(name: str) -> Path:
    """A fetched package."""
    path = PARTS / name / "package"
    if not path.is_dir():
        pytest.skip(f"{name} from the npm registry is missing: make viewers")
    return path


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where the pictures are left for people to look at."""
    folder = PARTS / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def ohif(tmp_path_factory: pytest.TempPathFactory, make_case: Any) -> Iterator[str]:  # noqa: F811
    """The address of OHIF in front of a server that has both painted studies, and real radiographs if ``KNEE_KL224`` is set."""
    pytest.importorskip("dicomweb_client", reason="DICOMweb needs dicomweb-client: pip install dicomweb-client")
    from knee.review.dicom.web import store

    folder = tmp_path_factory.mktemp("painted")
    with running_orthanc(folder) as orthanc, ohif_site(part("ohif") / "dist", f"{orthanc}/dicom-web") as address:
        files = write_studies(folder, make_case)
        if published := os.environ.get("KNEE_KL224"):
            files += write_radiographs(folder, make_case, Path(published))
        assert len(store(files, f"{orthanc}/dicom-web").accepted) == len(files)
        yield address


@pytest.fixture(scope="session")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with WebGL."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("viewers run in Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="Chromium is driven by selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('viewer')}"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()
