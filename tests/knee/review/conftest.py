"""A made-up case for every need, and a real browser where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from knee.grades import load_grade_set
from knee.review.cases import NetworkView, ReviewCase
from knee.review.html import ReviewRun

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
    """``make_case(number, **changes)``: the same case for the same number; K = 5, 128 px, 16 × 16 maps."""

    def make(number: int, **changes: object) -> ReviewCase:
        rng = np.random.default_rng(number)
        y, x = np.mgrid[0:128, 0:128]
        image = np.clip(90 + 60 * np.sin(x / 9) + rng.normal(0, 12, (128, 128)), 0, 255).astype(np.uint8)
        views = [NetworkView(rng.dirichlet(np.full(5, 0.6)), _blob(rng)) for _ in range(2)]
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
        return ReviewCase(**(values | changes))  # type: ignore[arg-type]

    return make


def _blob(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:16, 0:16]
    row, column = rng.uniform(4, 12, 2)
    return (2 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 6) + 0.1 * rng.random((16, 16))).astype(np.float32)


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
