"""``dcmt review import --dicom FOLDER|URL``: readers' structured reports of a folder, or of a DICOMweb server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from knee.data.cases import load_salt
from knee.engine.run import RunFolder
from knee.errors import UserError
from knee.review.dicom.readings import find_reports, read_report, studies_of, targets
from knee.review.dicom.web import fetch_reports
from knee.review.key import KeyedCase
from knee.review.verdicts import Reader
from knee.review.verdicts_file import Expected


@contextmanager
def readers_reports(
    source: str,
    run: RunFolder,
    values: Mapping[str, Any],
    key: Mapping[str, KeyedCase],
    expected: Expected,
    *,
    timeout_s: float,
) -> Iterator[tuple[list[Path], Reader]]:
    """The files of the reports, and how one is read. Of a server, they are fetched, and removed at the end.

    A server is asked only for the studies of the run's exported cases, of the originals and of the de-identified copies.
    """
    manifest = Path(values["data"]["manifest"])
    salt = load_salt(manifest, run.local)
    images = [(case, manifest.parent / one.image) for case, one in key.items()]
    known = targets(images, salt, model_hash=expected.model_hash, threshold=values["attention"]["threshold"])
    if not known:
        raise UserError(f"{run.path}: no exported case is a readable DICOM file, so reports cannot be of its images")
    read = partial(read_report, known=known)
    if not source.startswith(("http://", "https://")):
        yield find_reports(Path(source)), read
        return
    studies = studies_of([(key[case].patient, path) for case, path in images], salt)
    with TemporaryDirectory(prefix="dcmt_") as folder:
        present = fetch_reports(source, studies, Path(folder), timeout_s=timeout_s)
        where = f"{source} ({present} of the {len(studies)} studies of the exported cases and their copies are there)"
        yield find_reports(Path(folder), where=where), read
