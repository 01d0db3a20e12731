"""Objects sent to a real DICOM server, on loopback, that the test starts and stops."""

from __future__ import annotations

import gc
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from knee.errors import Faults, UserError
from knee.images.original import read_original
from knee.images.read import prepare, read_pixels
from knee.review.dicom.export import DicomExport
from knee.review.dicom.send import Node, send

pytest.importorskip("pynetdicom", reason="sending needs pynetdicom: pip install pynetdicom")

# pynetdicom leaves the socket of a connection that came to nothing to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _sockets_are_collected_here() -> Iterator[None]:
    yield
    gc.collect()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, str]]:
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if not program:
        pytest.skip("sending is tested against Orthanc: apt-get install orthanc")
    folder = tmp_path_factory.mktemp("orthanc")
    dicom, http = _free_port(), _free_port()
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomPort": dicom,
        "HttpPort": http,
        "HttpServerEnabled": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        _wait_for(dicom, server, folder / "log")
        yield Node("127.0.0.1", dicom, "ORTHANC"), f"http://127.0.0.1:{http}"
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"Orthanc did not start: {log.read_text()[-500:]}")


@pytest.fixture
def objects(tmp_path, run, make_case, write_source) -> list[Path]:
    files: list[Path] = []
    export = DicomExport(tmp_path / "dicom", run, "1.0", b"salt", maps=True)
    for kind in ("MR", "CR"):
        path = write_source(kind, np.arange(120 * 90, dtype=np.uint16).reshape(120, 90))
        image, geometry = prepare(read_pixels(path).values, 128)
        case = make_case(1, case=kind.lower(), image=image, geometry=geometry, source=path, cartilage=None)
        files += export.add(case, read_original(case.source)).files
    return [*files, *export.finish().files]


@pytest.mark.slow
def test_every_kind_of_object_is_taken_by_a_real_server(orthanc, objects):
    node, http = orthanc
    sent = send(objects, node)
    assert sent.accepted == tuple(objects) and sent.refused == ()
    assert str(sent) == "14 of 14 objects were accepted"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{http}/statistics") as answer:
        statistics = json.load(answer)
    assert statistics["CountInstances"] == 14
    assert statistics["CountStudies"] == 2


@pytest.mark.slow
def test_a_node_that_refuses_is_named(orthanc, objects):
    node, _ = orthanc
    with pytest.raises(UserError, match=r"WRONG at 127\.0\.0\.1:.*refuses the association"):
        send(objects[:1], Node(node.host, node.port, "WRONG"))


def test_a_node_that_is_not_there_is_named(objects):
    with pytest.raises(UserError, match=r"cannot be reached; check host, port and firewall"):
        send(objects[:1], Node("127.0.0.1", _free_port()), timeout_s=2)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (Node("no-such-machine.invalid", 104, "NODE"), "the host name is unknown"),
        (Node("bad..name", 104, "NODE"), "the host name is unknown"),
        (Node("localhost", 104, "A-TITLE-THAT-IS-TOO-LONG"), "is not 1–16 plain letters or digits"),
        (Node("localhost", 104, "KNÖTCHEN"), "is not 1–16 plain letters or digits"),
        (Node("localhost", 104, "NODE", " "), "is not 1–16 plain letters or digits"),
        (Node("localhost", 0, "NODE"), "port 0 is not 1–65535"),
    ],
)
def test_an_address_that_cannot_be_right_is_told(node, told, objects):
    with pytest.raises(UserError, match=told):
        send(objects[:1], node)


def test_only_dicom_objects_are_sent(tmp_path, objects):
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(Faults, match=r"a\.txt: is not a DICOM object"):
        send([*objects[:1], tmp_path / "a.txt", tmp_path / "none.dcm"], Node("127.0.0.1", 1))
    with pytest.raises(UserError, match="no files to send"):
        send([], Node("127.0.0.1", 1))
    with pytest.raises(UserError, match="port 70000"):
        send(objects[:1], Node("127.0.0.1", 70000))


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_node_gets_the_same_values_in_the_only_encoding_that_it_takes(objects, syntax):
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    implicit = objects[0].with_name("implicit.dcm")
    image = pydicom.dcmread(objects[0])
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.save_as(implicit, implicit_vr=True)
    taken: list[pydicom.Dataset] = []
    server = AE(ae_title="OLD")
    for context in AllStoragePresentationContexts:
        server.add_supported_context(context.abstract_syntax, syntax)

    def keep(event: evt.Event) -> int:
        assert event.context.transfer_syntax == syntax
        taken.append(event.dataset)
        return 0

    running = server.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        sent = send([*objects, implicit], Node("127.0.0.1", running.server_address[1], "OLD"))
    finally:
        running.shutdown()
    assert sent.refused == () and len(taken) == len(objects) + 1
    for path, other in zip([*objects, implicit], taken, strict=True):
        made = pydicom.dcmread(path)
        pixels = [one.pop("PixelData", None) for one in (made, other)]
        assert made.to_json() == other.to_json(), path.name
        assert pixels[0] is None or pixels[0].value == pixels[1].value, "implicitly, 8 bits are words too"


@pytest.mark.slow
def test_a_full_node_refuses_each_object_with_its_reason(objects):
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    server = AE(ae_title="FULL")
    server.supported_contexts = AllStoragePresentationContexts
    port = _free_port()
    running = server.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0xA700)])
    try:
        sent = send(objects[:2], Node("127.0.0.1", port, "FULL"))
    finally:
        running.shutdown()
    assert sent.accepted == ()
    assert [reason for _, reason in sent.refused] == ["status 0xA700"] * 2


@pytest.mark.slow
def test_a_node_that_closes_without_a_word_refuses(objects):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_the_first() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            connection.close()

        threading.Thread(target=close_the_first, daemon=True).start()
        with pytest.raises(UserError, match=r"refuses the association \(no reason given\)"):
            send(objects[:1], Node("127.0.0.1", server.getsockname()[1]), timeout_s=5)


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_told_from_one_that_refuses(objects):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(UserError, match=r"gave no answer in 1 s; .* longer --timeout"),
    ):
        send(objects[:1], Node("127.0.0.1", server.getsockname()[1]), timeout_s=1)


@pytest.mark.slow
def test_tls_needs_a_certificate_that_is_known(objects, tmp_path, monkeypatch):
    import ssl

    from pynetdicom import AE, evt

    if not shutil.which("openssl"):
        pytest.skip("TLS is tested with a certificate made by openssl: apt-get install openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = AE(ae_title="SAFE")
    for kind in ("1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.4"):
        server.add_supported_context(kind)
    running = server.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)]
    )
    node = Node("localhost", running.server_address[1], "SAFE", tls=True)
    try:
        with pytest.raises(UserError, match=r"cannot be reached by TLS; .*SSL_CERT_FILE"):
            send(objects[:1], node, timeout_s=5)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert len(send(objects[:1], node, timeout_s=5).accepted) == 1
    finally:
        running.shutdown()


@pytest.mark.slow
def test_a_node_that_fails_the_echo_gets_nothing(objects):
    from pynetdicom import AE, evt

    server = AE(ae_title="ILL")
    for kind in ("1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.4"):
        server.add_supported_context(kind)
    handlers = [(evt.EVT_C_ECHO, lambda event: 0x0110), (evt.EVT_C_STORE, lambda event: pytest.fail("sent"))]
    running = server.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        with pytest.raises(UserError, match=r"but not the echo \(status 0x0110\); nothing was sent"):
            send(objects[:1], Node("127.0.0.1", running.server_address[1], "ILL"))
    finally:
        running.shutdown()


@pytest.mark.slow
def test_a_node_for_other_objects_is_told_from_one_that_refuses(objects):
    from pynetdicom import AE

    server = AE(ae_title="ECHO")
    server.add_supported_context("1.2.840.10008.1.1")
    port = _free_port()
    running = server.start_server(("127.0.0.1", port), block=False)
    try:
        with pytest.raises(UserError, match="accepts none of the kinds of object"):
            send(objects[:1], Node("127.0.0.1", port, "ECHO"))
    finally:
        running.shutdown()
