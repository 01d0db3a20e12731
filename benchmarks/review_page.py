"""The review page: how fast it is exported and in how much memory, its size, how soon a browser opens it, how long a case
takes to be shown and a redraw takes.

    python benchmarks/review_page.py                     100 originals of 1,024 × 1,024 pixels
    python benchmarks/review_page.py --cases 500 --size 256 --prepared    500 images of which only the network's input is left

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium. Wanted for 100 originals: at least 5 cases a
second on 2 cores with inference beside it, memory flat in the number of cases, under 60 MB, opened within 2 s.
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

import cv2
import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from knee.grades import load_grade_set
from knee.images.original import Source
from knee.images.read import prepare, write_png
from knee.phantom import draw_mr_slice, draw_radiograph
from knee.review.cases import NetworkView, ReviewCase
from knee.review.export import Identity, ReviewExport
from knee.review.page.html import ReviewRun

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
DRAWN = 6  # a large radiograph takes seconds to draw: the others are these, shifted
NETWORK_PX = 224
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


SHOW = """const done = arguments[0], times = [], canvas = document.getElementById('canvas');
(async () => {
  for (let k = 0; k < 10; k++) {
    const before = canvas.dataset.case, began = performance.now();
    document.getElementById('next').click();
    while (canvas.dataset.case === before) await new Promise((next) => setTimeout(next, 1));
    times.push(performance.now() - began);
  }
  done(times);
})();"""


def made_up_cases(folder: Path, count: int, size: int, *, keep_sources: bool) -> Iterator[ReviewCase]:
    """``count`` drawn images of ``size`` pixels, half of them radiographs, with random evidence."""
    rng = np.random.default_rng(0)
    drawn = [
        draw_radiograph(seed=1, patient=number, side="LR"[number % 2], size=size).image for number in range(DRAWN // 2)
    ]
    drawn += [draw_mr_slice(seed=1, patient=number, index=3, size=size).image for number in range(DRAWN - len(drawn))]
    for number in range(count):
        pixels = np.roll(drawn[number % DRAWN], 7 * number, axis=1)
        path = folder / f"{number}.png"
        write_png(path, pixels, force=True)
        image, geometry = prepare(pixels, NETWORK_PX, mirror=number % 2 == 0)
        views = [NetworkView(rng.dirichlet(np.ones(3)), rng.random((14, 14), dtype=np.float32)) for _ in range(2)]
        yield ReviewCase(
            case=f"{number:011x}",
            image=image if keep_sources else cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA),
            student=views[0],
            teacher=views[1],
            flip_disagreement=0.1,
            split="unlabeled",
            grade=None,
            source=Source(path, geometry) if keep_sources else None,
        )


def export(folder: Path, cases: list[ReviewCase], count: int) -> Path:
    """The export as the command does it, from cases that are there already; the drawn ones repeat under new names."""
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


def browse(path: Path) -> None:
    """Open the page three times, go through cases, move a slider; print how long all that takes."""
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        # Without their paths selenium would look for a driver on the network.
        sys.exit("chromium and chromedriver are needed (Debian: apt-get install chromium chromium-driver)")
    options = Options()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(driver))

    def work() -> float:
        """Milliseconds of the page's main thread so far, whatever else the machine is doing."""
        found = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return 1e3 * next(one["value"] for one in found if one["name"] == "TaskDuration")

    try:
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        loads = []
        for _ in range(3):
            browser.get(path.as_uri())
            browser.find_element("id", "reader-name").send_keys("R1", "\ue007") if not loads else None
            time.sleep(1)
            timing = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
            loads.append(browser.execute_script(timing))
        before = work()
        shown = browser.execute_async_script(SHOW)
        a_case = (work() - before) / len(shown)
        times = browser.execute_async_script(REDRAW)
    finally:
        browser.quit()
    print(f"opened in {min(loads):.0f} ms")
    print(f"the next case is shown in {np.median(shown):.0f} ms ({a_case:.0f} ms of work), at most {max(shown):.0f} ms")
    print(f"a redraw takes {np.median(times):.1f} ms, at most {max(times):.1f} ms")


def main() -> None:
    """Export, open, browse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--size", type=int, default=1024, help="pixels of an original's side")
    parser.add_argument("--prepared", action="store_true", help="the originals are gone: the networks' input is shown")
    asked = parser.parse_args()
    count: int = asked.cases
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = list(made_up_cases(folder, min(count, 100), asked.size, keep_sources=not asked.prepared))
        export(folder, cases, 2)  # what is taken once, whatever the number
        small, large = (peak_mib(folder, cases, number) for number in (count // 5, count))
        start, work = time.perf_counter(), time.process_time()
        path = export(folder, cases, count)
        took, worked = time.perf_counter() - start, time.process_time() - work
        print(
            f"exported: {count / took:.1f} cases/s ({count / worked:.1f} a second of work), one thread, without inference"
        )
        print(f"memory: {small:.1f} MiB at most for {count // 5} cases, {large:.1f} for {count}")
        print(f"size: {path.stat().st_size / 1e6:.1f} MB")
        browse(path)


if __name__ == "__main__":
    main()
