"""The review file of 500 cases: export speed and memory, size, the time a browser takes to open it and to redraw.

    python benchmarks/review_page.py

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium. Targets: at least 20 cases/s without
inference, memory independent of the number of cases, under 10 MB, 1 s and 16 ms.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from knee.grades import load_grade_set
from knee.phantom import draw_mr_slice
from knee.review.cases import NetworkView, ReviewCase
from knee.review.export import Identity, ReviewExport
from knee.review.html import ReviewRun

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


def export(folder: Path, cases: list[ReviewCase], count: int) -> Path:
    """The export as the command does it, from drawn cases, which repeat under new names."""
    many = (replace(cases[number % len(cases)], case=f"{number:011x}") for number in range(count))
    run = ReviewRun("benchmark", "0" * 16, load_grade_set("cartilage"))
    made = ReviewExport(folder, run, ("html",), folder / "key.csv", "0", b"salt", force=True)
    made.write(many, {f"{number:011x}": Identity(f"{number}.png", f"P{number // 8}") for number in range(count)})
    return folder / "review.html"


def peak_mib(folder: Path, cases: list[ReviewCase], count: int) -> float:
    """The most memory that Python's objects and arrays take during an export of ``count`` cases."""
    tracemalloc.start()
    export(folder, cases, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


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
    cases = list(made_up_cases(100))
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), cases, 10)  # memory that is taken once
        small, large = (peak_mib(Path(folder), cases, number) for number in (count // 5, count))
        start, work = time.perf_counter(), time.process_time()
        path = export(Path(folder), cases, count)
        took, worked = time.perf_counter() - start, time.process_time() - work
        print(
            f"exported: {count / took:.0f} cases/s ({count / worked:.0f} a second of work), one thread, without inference"
        )
        print(f"memory: {small:.1f} MiB at most for {count // 5} cases, {large:.1f} for {count}")
        print(f"size: {path.stat().st_size / 1e6:.1f} MB")
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
