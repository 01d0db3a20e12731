"""Work in processes of its own: results, failures, and what a signal does."""

from __future__ import annotations

import math
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.side_by_side import Work, side_by_side

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys, time
from pathlib import Path
from experiments.side_by_side import Work, side_by_side

def sleep(path):
    path.write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    side_by_side([Work("sleep", folder / "sleep.log", sleep, (folder / "pid",))], 1)
"""


def test_a_failure_stops_no_other_work_and_what_follows_from_results_runs(tmp_path):
    def work(name: str, call, *arguments: object) -> Work:
        return Work(name, tmp_path / "logs" / f"{name}.log", call, arguments)

    def then(done: Work, found: int) -> list[Work]:
        return [work("second", operator.mul, found, 10)] if done.name == "first" else []

    first = work("first", operator.add, 1, 2)
    assert side_by_side([first], 2, then) == {"first": 3, "second": 30}
    broken = [work("root", math.sqrt, -1), work("killed", os._exit, 3)]
    with pytest.raises(RuntimeError, match=r"root: ValueError.*root\.log") as error:
        side_by_side([*broken, work("written", Path.write_text, tmp_path / "written", "1")], 1)
    assert "killed.log" in str(error.value)
    assert (tmp_path / "written").read_text() == "1"


def _ends(pid: int) -> bool:
    """Whether a process is gone within some seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_their_parent(number, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path], env=environment) as process:
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(timeout=60) == (130 if number == signal.SIGTERM else -number)
    assert _ends(int((tmp_path / "pid").read_text()))
