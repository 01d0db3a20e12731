"""The picture of the review page in the README: a case read blind, with the teacher's evidence map.

    dcmt phantom runs/shown/data --patients 30 --size 320 --drawn-masks 120
    dcmt split runs/shown/data/manifest.csv --grade-set cartilage --out runs/shown/split.csv
    python train.py --config configs/phantom.yaml --labeled-fraction 0.5 --data.manifest runs/shown/data/manifest.csv \\
        --data.split runs/shown/split.csv --runs runs/shown --name dcmt --fit.steps 240 --fit.validate_every 120
    dcmt review export runs/shown/dcmt --split test
    python -m experiments.review_screenshot runs/shown/dcmt/review/test/review.html docs/img/review.png

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import time
from pathlib import Path

from selenium import webdriver

WIDTH, HEIGHT = 1200, 750
MOST_OVERLAP = """const cases = [...document.querySelectorAll('script.case')].map((one) => JSON.parse(one.textContent));
cases.sort((one, other) => (one.doubts.overlap ?? 1) - (other.doubts.overlap ?? 1));
const shown = cases.find((one) => one.grade > 0) || cases[0];
document.documentElement.dataset.theme = 'dark';
document.querySelector(`#cases button[data-case="${shown.case}"]`).click();
return shown.grade ?? 0;"""


def main() -> None:
    """Open the page, grade the case whose attention lies on the cartilage best, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
    browser = webdriver.Chrome(options=options, service=service)
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(asked.page.resolve().as_uri())
        browser.find_element("id", "reader-name").send_keys("R1", "\ue007")
        grade = browser.execute_script(MOST_OVERLAP)
        browser.find_element("css selector", f'#grades [data-grade="{grade}"]').click()
        time.sleep(2)
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    finally:
        browser.quit()
    asked.out.write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    main()
