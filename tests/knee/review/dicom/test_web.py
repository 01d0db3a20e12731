"""DICOMweb: Orthanc with its plugin, and a local server that answers as servers do when something is wrong."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest

from knee.errors import Faults, UserError
from knee.review.dicom.web import TOKEN, fetch_reports, fetch_study, store
from tests.orthanc import running_orthanc

from .conftest import _source_values

pytest.importorskip("dicomweb_client", reason="DICOMweb needs dicomweb-client: pip install dicomweb-client")


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """``answering(*answers)``: the address of a server that gives one (status, body) per request; None cuts it.

    ``kind`` is the type of its answers, ``place`` where it redirects to.
    """
    servers = []

    def start(*answers: tuple[int, bytes] | None, kind: str = "application/dicom+json", place: str = "") -> str:
        left, requests = list(answers), []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                requests.append(dict(self.headers))
                answer = left.pop(0) if len(left) > 1 else left[0]
                if answer is None:
                    self.rfile.read(min(length, 10))
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.rfile.read(length)
                self.send_response(answer[0])
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer[1])))
                if place:
                    self.send_header("Location", place)
                self.end_headers()
                self.wfile.write(answer[1])

            do_GET = do_POST = _answer

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.requests = requests  # type: ignore[attr-defined]
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/dicom-web"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def objects(write_source) -> list[Path]:
    return [write_source("CR", _source_values("CR")[:40, :40]) for _ in range(3)]


_STORED = (200, b"{}")
_PARTIAL = json.dumps(
    {
        "00081198": {
            "vr": "SQ",
            "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}, "00081197": {"vr": "US", "Value": [272]}}],
        }
    }
).encode()


@pytest.mark.parametrize("status", [202, 207])
def test_what_a_server_says_of_each_object_is_told_and_the_others_are_stored(answering, objects, monkeypatch, status):
    monkeypatch.delenv(TOKEN, raising=False)
    sent = store(objects, answering(_STORED, (status, _PARTIAL), (413, b"")))
    assert sent.accepted == (objects[0],)
    assert [path for path, _ in sent.refused] == objects[1:]
    reasons = [reason for _, reason in sent.refused]
    assert reasons[0] == "the server reports failure 0x0110" and "larger than the server accepts (413)" in reasons[1]


def test_a_page_or_a_redirection_is_not_taken_for_success(answering, objects, tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    page = answering((200, b"<html>log in</html>"), kind="text/html; charset=utf-8")
    with pytest.raises(UserError, match=r"is not DICOMweb \(it is text/html\); check the address; 0 of 3 objects"):
        store(objects, page)
    with pytest.raises(UserError, match=r"not DICOMweb \(it is text/html\)"):
        fetch_study(page, "1.2.3", tmp_path)
    elsewhere = answering((302, b""), place="https://pacs.example/login")
    with pytest.raises(UserError, match=r"\(it redirects to https://pacs.example/login\)"):
        store(objects, elsewhere)
    typed = answering((202, _PARTIAL), kind="application/dicom+json; charset=utf-8")
    assert [reason for _, reason in store(objects[:1], typed).refused] == ["the server reports failure 0x0110"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, b""), f"does not know you \\(401\\); put a valid token into the environment variable {TOKEN}"),
        ((403, b""), r"does not allow it \(403\)"),
        ((404, b""), r"is not a DICOMweb address \(404\)"),
        ((405, b""), r"is not a DICOMweb address \(405\)"),
        ((500, b""), r"failed \(status 500\)"),
        (None, "ended the connection"),
    ],
)
def test_a_failure_in_the_middle_names_what_was_stored(answering, objects, answer, message):
    with pytest.raises(UserError, match=f"{message}.*; 1 of 3 objects were accepted and stay there"):
        store(objects, answering(_STORED, answer))


def test_a_study_that_is_not_there_and_an_address_that_is_none(answering, tmp_path, objects):
    with pytest.raises(UserError, match=r"has no study 1\.2\.3 \(404\)"):
        fetch_study(answering((404, b"")), "1.2.3", tmp_path)
    with pytest.raises(UserError, match="is not a UID"):
        fetch_study(answering((404, b"")), "../etc", tmp_path)
    with pytest.raises(UserError, match="cannot be reached"):
        store(objects, "http://127.0.0.1:9/dicom-web", timeout_s=5)
    with pytest.raises(UserError, match="is not the address of a DICOMweb server"):
        store(objects, "pacs:8042")
    (tmp_path / "text.dcm").write_text("no")
    with pytest.raises(Faults, match="nothing was sent"):
        store([tmp_path / "text.dcm"], answering(_STORED))


def test_a_server_that_takes_nothing_is_late_and_one_without_tls_is_told_from_a_bad_certificate(
    answering, write_source
):
    large = write_source("CR", np.zeros((3000, 2000), np.uint16))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web"
        with pytest.raises(UserError, match=r"no answer in 1 s; it may be busy.*; 0 of 1 objects were accepted"):
            store([large], address, timeout_s=1)
        with pytest.raises(UserError, match="no answer in 1 s; it may be busy"):
            fetch_study(address, "1.2.3", large.parent / "fetched", timeout_s=1)
    with pytest.raises(UserError, match="does not speak TLS; is its address http://"):
        fetch_study(answering(_STORED).replace("http:", "https:"), "1.2.3", large.parent / "fetched")


def test_files_of_an_iterator_are_sent_as_they_come(answering, objects):
    address = answering(_STORED, _STORED, (401, b""))

    def made():
        for number, path in enumerate(objects):
            yield path
            assert number < 2, "the third was refused, and no more are asked for"

    assert store(iter(objects[:2]), answering(_STORED)).accepted == tuple(objects[:2])
    with pytest.raises(UserError, match=r"does not know you \(401\).*; 2 objects were accepted and stay there"):
        store(made(), address)
    assert store(iter(()), answering(_STORED)).accepted == ()


def test_reports_of_a_server_that_fails_are_told_and_a_missing_study_has_none(answering, tmp_path):
    assert fetch_reports(answering((404, b"")), ["1.2.3", "1.2.4"], tmp_path) == 0
    assert fetch_reports(answering((200, b"[]")), ["1.2.3"], tmp_path) == 0
    with pytest.raises(UserError, match=r"does not allow it \(403\)"):
        fetch_reports(answering((403, b"")), ["1.2.3"], tmp_path)
    with pytest.raises(UserError, match="ended the connection"):
        fetch_reports(answering(None), ["1.2.3"], tmp_path)
    assert not list(tmp_path.rglob("*.dcm"))


def test_a_connection_that_is_cut_at_half_of_an_object_names_what_was_stored(objects):
    """The server reads half of the second request, and disconnects."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[int] = []
    lengths: list[int] = []  # identifiers, and so objects, are not all equally long

    def serve() -> None:
        for number in range(2):
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                length = next(int(line.split(b":")[1]) for line in stream if line.lower().startswith(b"content-length"))
                while stream.readline().strip():
                    pass
                lengths.append(length)
                seen.append(len(stream.read(length if number == 0 else length // 2)))
                if number == 0:
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 2\r\n"
                        b"Connection: close\r\n\r\n{}"
                    )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/dicom-web"
    with (
        listener,
        pytest.raises(UserError, match=r"ended the connection.*; 1 of 3 objects were accepted and stay there"),
    ):
        store(objects, address, timeout_s=20)
    thread.join(10)
    assert seen == [lengths[0], lengths[1] // 2] and seen[1] > 1000


def test_a_token_is_never_sent_in_the_open(answering, objects, monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    with pytest.raises(UserError, match="would be sent unencrypted; use https"):
        store(objects, "http://pacs.example/dicom-web")
    with pytest.raises(UserError, match="the address holds a password") as caught:
        store(objects, "https://me:hidden@pacs.example/dicom-web")
    assert "hidden" not in str(caught.value)
    assert len(store(objects[:1], answering(_STORED)).accepted) == 1, "on this machine it may be"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[str]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc_web")) as address:
        yield address


@pytest.mark.slow
def test_two_patients_stay_two_in_orthanc_and_sending_twice_adds_nothing(
    orthanc, write_series, case_of, export, tmp_path
):
    cases = [case_of(path, "L", case=f"a{n}") for n, path in enumerate(write_series("MR", 3, PatientID="ONE"))]
    cases += [case_of(path, "R", case=f"b{n}") for n, path in enumerate(write_series("DX", 2, PatientID="TWO"))]
    files = export.write(*cases).files
    for _ in range(2):
        assert len(store(files, f"{orthanc}/dicom-web").accepted) == len(files)
        with urllib.request.urlopen(f"{orthanc}/statistics") as answer:
            counts = json.load(answer)
        assert (counts["CountPatients"], counts["CountStudies"], counts["CountInstances"]) == (2, 2, len(files))
    with urllib.request.urlopen(f"{orthanc}/dicom-web/studies") as answer:
        studies = [item["0020000D"]["Value"][0] for item in json.load(answer)]
    fetched = []
    for study in studies:
        with urllib.request.urlopen(f"{orthanc}/dicom-web/studies/{study}/metadata") as answer:
            assert answer.status == 200
        fetched += fetch_study(f"{orthanc}/dicom-web", study, tmp_path / study)
    identifiers = [{str(pydicom.dcmread(path).SOPInstanceUID) for path in paths} for paths in (files, fetched)]
    assert identifiers[0] == identifiers[1] and len(fetched) == len(files)
    assert {path.stem for path in fetched} == identifiers[0], "named alike in whatever order the server sends them"
    with pytest.raises(UserError, match=r"1\.2\.3"):
        fetch_study(f"{orthanc}/dicom-web", "1.2.3", tmp_path / "none")
    assert fetch_reports(f"{orthanc}/dicom-web", [*studies, "1.2.3"], tmp_path / "reports") == 2, (
        "the third is not there"
    )
    reports = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "reports").rglob("*.dcm")}
    made = [pydicom.dcmread(path) for path in files]
    assert reports == {one.SOPInstanceUID for one in made if one.Modality == "SR"} and reports
