"""DICOMweb: fetch a study or the reports of studies (QIDO-RS, WADO-RS), and store objects (STOW-RS), each with its answer."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from tqdm import tqdm

from knee.errors import Faults, UserError
from knee.io.tables import shortened
from knee.review.dicom.send import Sent

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient
    from requests import Response

TOKEN = "DICOMWEB_TOKEN"
"""The environment variable with the bearer token; options of a command would be visible to other users."""
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LOCAL = ("localhost", "127.0.0.1", "::1")
_OF_OBJECT = {
    400: "the server does not accept it (400)",
    409: "the server does not accept it (409)",
    413: "it is larger than the server accepts (413); raise the limit there",
    415: "the server does not accept its transfer syntax (415)",
}
"""Statuses that concern one object; others may be accepted."""
_PLAIN = tuple(f"application/{kind}" for kind in ("dicom+json", "json", "dicom+xml", "xml"))
_ANSWERS = (*_PLAIN, "multipart/related", "application/dicom")
"""The types of DICOMweb's answers; of the plain ones the client wants no parameters, as ``; charset=utf-8``."""


def check_address(url: str) -> None:
    """Raise UserError where ``url`` cannot be a server's, or nothing here speaks DICOMweb; nothing is sent."""
    _client(url, 1.0)


def store(paths: Iterable[Path], url: str, *, timeout_s: float = 60.0) -> Sent:
    """Store files by STOW-RS, one request each, in the order given; a refused file does not stop the others.

    Files of an iterator are sent as they come. Raises UserError where the server cannot be reached, refuses the user, fails
    or disconnects: what was accepted until then stays there. Raises Faults, before anything is sent, where files of a
    sequence are not DICOM objects.
    """
    client = _client(url, timeout_s)
    total = ""
    if isinstance(paths, Sequence):
        _check(paths)
        total = f" of {len(paths)}"
    accepted: list[Path] = []
    refused: list[tuple[Path, str]] = []
    for path in tqdm(paths, desc="sending", unit="object", disable=None):
        with _told(url, timeout_s, done=f"; {len(accepted)}{total} objects were accepted and stay there"):
            reason = _store(client, path)
        if reason:
            refused.append((path, reason))
        else:
            accepted.append(path)
    return Sent(tuple(accepted), tuple(refused))


def _store(client: DICOMwebClient, path: Path) -> str:
    """Send one file; the server's reason if it refused it, else ''."""
    import requests

    try:
        answer = client.store_instances([pydicom.dcmread(path)])
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in _OF_OBJECT:
            return _OF_OBJECT[status]
        raise
    failed = answer.get("FailedSOPSequence") or []
    return "; ".join(f"the server reports failure 0x{int(item.get('FailureReason') or 0):04X}" for item in failed)


def fetch_study(url: str, study: str, folder: Path, *, timeout_s: float = 60.0) -> list[Path]:
    """The study's objects by WADO-RS, as stored, in ``folder``, one subfolder for each series.

    Raises UserError where the study is not there, and as ``store``; the folder is then incomplete.
    """
    client = _client(url, timeout_s)
    if not _UID.fullmatch(study) or len(study) > 64:
        raise UserError(f"--study {study!r:.80} is not a UID; give the StudyInstanceUID, as 1.2.840.113619.2…")
    files: list[Path] = []
    with _told(url, timeout_s, study=study):
        found = client.iter_study(study, media_types=(("application/dicom", "*"),))
        for image in tqdm(found, desc="fetching", unit="object", disable=None):
            path = _place(folder, str(image.get("SeriesInstanceUID", "")), image)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save_as(path, enforce_file_format=True)
            files.append(path)
    if not files:
        raise UserError(f"{url}: has no object of study {study}; check the UID and your rights there")
    return files


def fetch_reports(url: str, studies: Iterable[str], folder: Path, *, timeout_s: float = 60.0) -> int:
    """The structured reports of the studies, as stored, in ``folder``; returns how many of the studies the server has.

    Raises UserError as ``store``. A study that is not there has no reports.
    """
    client = _client(url, timeout_s)
    present = 0
    for study in tqdm(sorted(set(studies)), desc="asking", unit="study", disable=None):
        with _told(url, timeout_s):
            found = _series(client, study)
            present += bool(found)
            for one in found:
                if _value(one, "00080060") != "SR":
                    continue
                for report in client.retrieve_series(study, _value(one, "0020000E")):
                    path = _place(folder, study, report)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    report.save_as(path, enforce_file_format=True)
    return present


def _series(client: DICOMwebClient, study: str) -> list[dict[str, Any]]:
    """The series of a study; none where the server does not have it. The modality is compared here, not by the server."""
    import requests

    try:
        return list(client.search_for_series(study))
    except requests.HTTPError as error:
        if error.response is not None and error.response.status_code == 404:
            return []
        raise


def _value(item: Mapping[str, Any], tag: str) -> str:
    return str((item.get(tag, {}).get("Value") or [""])[0])


def _place(folder: Path, group: str, image: Dataset) -> Path:
    """A file name from the server's UIDs, which may be any text; the same at every call, since cases are named after it."""
    names = [
        "".join(letter for letter in uid if letter in "0123456789.")[:64].strip(".") or "none"
        for uid in (group, str(image.get("SOPInstanceUID", "")))
    ]
    return folder / names[0] / f"{names[1]}.dcm"


def _client(url: str, timeout_s: float) -> DICOMwebClient:
    try:
        import requests
        from dicomweb_client.api import DICOMwebClient
    except ImportError as error:
        raise UserError("DICOMweb needs dicomweb-client; install it with: pip install 'dcmt-knee[dicomweb]'") from error
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r:.200} is not the address of a DICOMweb server; give one like https://host/dicom-web")
    token = os.environ.get(TOKEN, "").strip()
    if parts.username or parts.password:
        raise UserError(f"the address holds a password, which others can see; put a token into the variable {TOKEN}")
    if token and parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise UserError(f"{url}: the token in {TOKEN} would be sent unencrypted; use https")
    session = requests.Session()
    session.hooks["response"].append(_checked)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = DICOMwebClient(url, session=session, headers=headers, timeout=timeout_s)
    client.set_http_retry_params(retry=False)
    return client


def _checked(answer: Response, **_: object) -> None:
    """Raise ValueError for an answer that is not DICOM's, such as a page to log in, which the client takes for success.

    Its type gets the plain name that the client compares.
    """
    kind, wrong = answer.headers.get("Content-Type", "").split(";")[0].strip().lower(), ""
    if answer.is_redirect and answer.request.method == "POST":
        wrong = f"it redirects to {answer.headers['Location']:.120}"
    elif kind and answer.ok and not answer.is_redirect and kind not in _ANSWERS:
        wrong = f"it is {kind:.60}"
    if wrong:
        answer.close()
        raise ValueError(wrong)
    if kind in _PLAIN:
        answer.headers["Content-Type"] = kind


def _check(paths: Sequence[Path]) -> None:
    faults = []
    for path in paths:
        try:
            pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        except (OSError, InvalidDicomError, AttributeError, ValueError) as error:
            faults.append(f"{path}: is not a DICOM object ({error})")
    if faults:
        raise Faults(shortened(faults), summary=f"{len(faults)} files cannot be sent; nothing was sent")
    if not paths:
        raise UserError("there are no files to send; export with --format dicom first")


def _late(url: str, timeout_s: float) -> str:
    return f"{url}: no answer in {timeout_s:g} s; it may be busy: try again with a longer --timeout"


@contextmanager
def _told(url: str, timeout_s: float, *, study: str = "", done: str = "") -> Iterator[None]:
    """Turn every failure of a request into a UserError that says what happened, and what was done before it."""
    import requests

    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reasons = {
            401: f"does not know you (401); put a valid token into the environment variable {TOKEN}",
            403: "does not allow it (403); ask for the right to read or store there",
            404: f"has no study {study} (404); check its UID, and the address"
            if study
            else "is not a DICOMweb address (404); check its path",
            405: "is not a DICOMweb address (405); check its path",
        }
        reason = reasons.get(status, f"failed (status {status}); see the server's log, and try again")
        raise UserError(f"{url}: {reason}{done}") from error
    except requests.exceptions.SSLError as error:
        if "WRONG_VERSION_NUMBER" in str(error):
            raise UserError(f"{url}: does not speak TLS; is its address http://?{done}") from error
        raise UserError(
            f"{url}: its certificate cannot be verified ({error}); name your certificates in REQUESTS_CA_BUNDLE{done}"
        ) from error
    except requests.Timeout as error:
        raise UserError(_late(url, timeout_s) + done) from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        if "timed out" in str(error):  # while a request was sent
            raise UserError(_late(url, timeout_s) + done) from error
        raise UserError(
            f"{url}: cannot be reached, or ended the connection; check address and network, and try again{done}"
        ) from error
    except (ValueError, KeyError, AttributeError, requests.RequestException, InvalidDicomError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{url}: its answer is not DICOMweb ({reason}); check the address{done}") from error
