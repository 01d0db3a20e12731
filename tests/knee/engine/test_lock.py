"""The lock of a run folder: held while a process lives, whatever it forked, and no longer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from knee.engine.lock import RunLock
from knee.engine.run import RunFolder
from knee.errors import UserError

HOLD = """
import sys, time
from knee.engine.lock import RunLock
with RunLock(__import__("pathlib").Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_another_process_is_respected_and_ends_with_it(
    started: RunFolder, command_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", HOLD, str(started.path)]
    with subprocess.Popen(command, env=command_environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training"), RunLock(started.path):
            pass
        holder.kill()
    with RunLock(started.path):  # a dead process holds nothing
        pass
    with RunLock(started.path):
        pass


FORK = """
import os, sys, time
from knee.engine.lock import RunLock
with RunLock(__import__("pathlib").Path(sys.argv[1])):
    if not os.fork():  # the child has let go by now; the parent may be killed before it could have
        print("held", flush=True)
    time.sleep(60)
"""


def test_lock_is_not_held_on_by_a_process_that_the_dead_one_forked(
    started: RunFolder, command_environment: dict[str, str]
) -> None:
    """A process that loads images, say: it outlives the killed one by seconds."""
    command = [sys.executable, "-c", FORK, str(started.path)]
    with subprocess.Popen(
        command, env=command_environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training"), RunLock(started.path):
            pass
        holder.kill()
        holder.wait()
        try:
            with RunLock(started.path):
                pass
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_file_system_without_locks_trains_all_the_same(started: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with RunLock(started.path), RunLock(started.path):  # nothing keeps the second out: the price of such a file system
        held = list(started.local.glob("lock"))
    assert len(held) == 1
