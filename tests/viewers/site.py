"""OHIF beside a DICOMweb server: one local address for both, so that the browser may ask it."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_DICOMWEB = "/dicom-web"
_PASSED = ("Accept", "Content-Type")


def _config(address: str) -> str:
    root = f"{address}{_DICOMWEB}"
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "orthanc",
        "configuration": {
            "friendlyName": "Orthanc",
            "name": "orthanc",
            "wadoUriRoot": root,
            "qidoRoot": root,
            "wadoRoot": root,
            "qidoSupportsIncludeField": False,
            "imageRendering": "wadors",
            "thumbnailRendering": "wadors",
            "enableStudyLazyLoad": True,
            "supportsFuzzyMatching": False,
            "supportsWildcard": True,
            "bulkDataURI": {"enabled": True},
            "omitQuotationForMultipartRequest": True,
        },
    }
    values = {
        "routerBasename": "/",
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "showStudyList": True,
        "maxNumberOfWebWorkers": 1,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "investigationalUseDialog": {"option": "never"},
        "defaultDataSourceName": "orthanc",
        "dataSources": [source],
    }
    return f"window.config = {json.dumps(values)};"


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _send(self, status: int, kind: str | None, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
        try:
            shutil.copyfileobj(source, outputfile)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def ohif_site(dist: Path, dicomweb: str) -> Iterator[str]:
    """The address of OHIF's files in ``dist`` and, below ``/dicom-web``, of the server ``dicomweb``."""

    class Handler(_Handler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(dist))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if self.path.startswith(_DICOMWEB):
                self._pass_on()
            elif self.path.split("?")[0] == "/app-config.js":
                self._send(200, "text/javascript", _config(address).encode())
            else:
                if not Path(self.translate_path(self.path)).is_file():
                    self.path = "/index.html"
                super().do_GET()

        def do_POST(self) -> None:
            self._pass_on()

        def _pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            headers = {name: self.headers[name] for name in _PASSED if self.headers[name]}
            body = self.rfile.read(length) if length else None
            request = urllib.request.Request(dicomweb + self.path.removeprefix(_DICOMWEB), body, headers)
            try:
                with urllib.request.urlopen(request) as answer:
                    self._send(answer.status, answer.headers["Content-Type"], answer.read())
            except urllib.error.HTTPError as error:
                self._send(error.code, "text/plain", error.read())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
