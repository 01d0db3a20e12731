"""A real DICOM server with DICOMweb, where Debian's orthanc and orthanc-dicomweb are installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@contextmanager
def running_orthanc(folder: Path) -> Iterator[str]:
    """The address of a server that keeps its objects in ``folder``; its DICOMweb is at ``/dicom-web``. Skips without one."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if not program or not _PLUGIN.exists():
        pytest.skip("DICOMweb is tested against Orthanc: apt-get install orthanc orthanc-dicomweb")
    with socket.socket() as probe, socket.socket() as other:
        probe.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        http, dicom = probe.getsockname()[1], other.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "DicomPort": dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(_PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log.txt").open("wb") as log:
        running = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    base = f"http://127.0.0.1:{http}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{base}/statistics", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "log.txt").read_text()[-500:])
        yield base
    finally:
        running.terminate()
        running.wait()
