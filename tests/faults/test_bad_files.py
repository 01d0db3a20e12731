"""Bad files by the hundred: each is read as it should be, or refused by its name, in bounded time and memory."""

from __future__ import annotations

import collections
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Figures

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 10.0
MOST_MIB = 2048
"""The largest image that is allowed takes 1.5 GiB; the bombs unpack to 4 GiB."""
HANG_SECONDS = 120.0
"""Of the clock, on a machine that may be busy; ``MOST_SECONDS`` are of the processor."""

Found = tuple[dict[str, Any], dict[str, Any]]


class Reader:
    """A process that reads one file after the other; started anew where one ended it."""

    def __init__(self, corpus: Path) -> None:
        self._corpus = corpus
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("reader.py")), str(self._corpus)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def read(self, job: dict[str, Any]) -> dict[str, Any]:
        """What came of a file: the reader's answer, or that it hung or died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        answered, _, _ = select.select([stdout], [], [], HANG_SECONDS)
        line = stdout.readline() if answered else ""
        if line:
            return dict(json.loads(line))
        self.stop()
        ended = {
            "result": "hung" if not answered else f"died ({self._process.returncode})",
            "seconds": 0,
            "peak_mib": 0,
        }
        self._process = self._start()
        return ended

    def stop(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.kill()
        self._process.wait()


def read_corpus(folder: Path, every: int) -> list[Found]:
    """Write the corpus and read it; (what must come of a file, what came of it) for each."""
    writer = [sys.executable, str(Path(__file__).with_name("damage.py")), str(folder), str(every)]
    folder.mkdir()
    subprocess.run(writer, check=True, timeout=600)
    reader = Reader(folder)
    try:
        return [(job, reader.read(job)) for job in json.loads((folder / "index.json").read_text())]
    finally:
        reader.stop()


def mishandled(job: dict[str, Any], found: dict[str, Any]) -> str:
    """What is wrong with how a file was handled; empty where nothing is."""
    result = found["result"]
    if job["damage"] == "none" and result != "equal":
        return f"is sound, but {result}: {found.get('reason', '')}"
    if result not in ("refused", "equal", "differs"):
        return str(result)
    if result == "differs" and not job["may_differ"]:
        return f"was read as other pixels, {found['shape']}"
    if found["seconds"] > MOST_SECONDS or found["peak_mib"] > MOST_MIB:
        return f"took {found['seconds']:.0f} s, {found['peak_mib']} MiB"
    return ""


def told(found: list[Found]) -> str:
    """The numbers to report."""
    bad = [(job, came) for job, came in found if job["damage"] != "none"]
    handled = sum(not mishandled(job, came) for job, came in bad)
    results = collections.Counter(came["result"] for _, came in bad)
    unverifiable = sum(job["may_differ"] for job, _ in bad)
    return (
        f"{handled} of {len(bad)} bad files handled: {results['refused']} refused by name and reason, {results['equal']} "
        f"read without a wrong pixel, {results['differs']} read with other pixels (of {unverifiable} with flipped or zeroed "
        f"bytes: their formats have no checksum); the slowest took {max(came['seconds'] for _, came in bad):.1f} s, the "
        f"largest {max(came['peak_mib'] for _, came in bad)} MiB"
    )


def measured(found: list[Found]) -> Figures:
    """The numbers for the table."""
    bad = [(job, came) for job, came in found if job["damage"] != "none"]
    results = collections.Counter(came["result"] for _, came in bad)
    slowest = max(came["seconds"] for _, came in found)
    largest = max(came["peak_mib"] for _, came in found)
    return {
        "bad files handled": f"{sum(not mishandled(job, came) for job, came in bad)} of {len(bad)}",
        "of these refused by name and reason": str(results["refused"]),
        "of these read without a wrong pixel": str(results["equal"]),
        "of these read with other pixels, in formats without a checksum": str(results["differs"]),
        "slowest read": f"{slowest:.1f} s of processor (at most {MOST_SECONDS:.0f})",
        "largest memory of a read": f"{largest} MiB (at most {MOST_MIB})",
    }


def check(found: list[Found]) -> None:
    faults = [f"{job['path']}: {fault}" for job, came in found if (fault := mishandled(job, came))]
    assert not faults, "\n".join(faults)


def test_a_sample_of_bad_files(tmp_path: Path) -> None:
    found = read_corpus(tmp_path / "corpus", 16)
    check(found)
    assert len(found) > 60


@pytest.mark.faults
def test_bad_files(tmp_path: Path, figures: Figures, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_corpus(tmp_path / "corpus", 1)
    figures |= measured(found)
    with capsys.disabled():
        sys.stdout.write(f"\n{told(found)}\n")
    check(found)
    assert sum(job["damage"] != "none" for job, _ in found) >= 500
    by_format = collections.Counter(Path(job["path"]).suffix for job, came in found if came["result"] == "differs")
    # PNG and compressed NIfTI have checksums, of every byte that matters.
    assert not by_format[".png"]
    assert not [job for job, came in found if ".nii.gz" in job["path"] and came["result"] == "differs"]
