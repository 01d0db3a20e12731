"""The review file of 500 cases in a real browser: its size, how soon it opens, how long a redraw takes.

    python benchmarks/review_page.py

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium. Wanted: under 10 MB, 1 s and 16 ms.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from knee.grades import load_grade_set
from knee.phantom import draw_mr_slice
from knee.review.cases import NetworkView, ReviewCase
from knee.review.html import ReviewRun, write_review_html

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
REDRAW = """const done = arguments[0], times = [];
const slider = document.getElementById('opacity'), canvas = document.getElementById('canvas');
(async () => {
  for (let k = 0; k < 40; k++) {
    slider.value = 0.2 + 0.01 * k;
    slider.dispatchEvent(new Event('input'));
    await new Promise((next) => setTimeout(next, 25));
    times.push(Number(canvas.dataset.milliseconds));
  }
  done(times);
})();"""


def made_up_cases(count: int) -> Iterator[ReviewCase]:
    """``count`` phantom slices at 256 px with random evidence."""
    rng = np.random.default_rng(0)
    for number in range(count):
        image = draw_mr_slice(seed=1, patient=number // 8, index=number % 8, size=256).image
        views = [NetworkView(rng.dirichlet(np.ones(3)), rng.random((16, 16), dtype=np.float32)) for _ in range(2)]
        yield ReviewCase(
            case=f"{number:011x}",
            image=image,
            student=views[0],
            teacher=views[1],
            flip_disagreement=0.1,
            split="unlabeled",
            grade=None,
        )


def main() -> None:
    """Write the file, open it three times, move the opacity slider."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    count = parser.parse_args().cases
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        # Without their paths selenium would look for a driver on the network.
        sys.exit("chromium and chromedriver are needed (Debian: apt-get install chromium chromium-driver)")
    options = Options()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    cases = list(made_up_cases(count))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "review.html"
        start = time.perf_counter()
        write_review_html(path, ReviewRun("benchmark", "0" * 16, load_grade_set("cartilage")), cases, force=True)
        print(f"written: {len(cases) / (time.perf_counter() - start):.0f} cases/s, {path.stat().st_size / 1e6:.1f} MB")
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            loads = []
            for _ in range(3):
                browser.get(path.as_uri())
                browser.find_element("id", "reader-name").send_keys("R1", "\ue007") if not loads else None
                time.sleep(1)
                timing = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
                loads.append(browser.execute_script(timing))
            times = browser.execute_async_script(REDRAW)
        finally:
            browser.quit()
    print(f"opened in {min(loads):.0f} ms; a redraw takes {np.median(times):.1f} ms, at most {max(times):.1f} ms")


if __name__ == "__main__":
    main()
