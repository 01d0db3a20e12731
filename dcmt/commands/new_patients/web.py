"""``dcmt predict --from URL --study UID`` and ``--to URL``: a study from a DICOMweb server, graded, and its objects stored."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from dcmt.commands.new_patients.export import chosen_formats
from dcmt.commands.predict import predict_command
from dcmt.commands.review.verdicts import report_sent
from knee.errors import UserError, counted
from knee.nn import processes
from knee.review.dicom.web import fetch_study, store

log = logging.getLogger(__name__)


def predict_from_anywhere(options: argparse.Namespace) -> int:
    """Grade the images of a path or of a study; exit code 1 if a server refused some of the objects.

    The fetched images are removed at the end.
    """
    server, study = options.server, options.study
    if (server is None) != (study is None) or (server is None) == (options.images is None):
        raise UserError("give either a path of images, or a study of a DICOMweb server: --from URL --study UID")
    formats = chosen_formats(options.format)
    options.no_overlays |= "png" not in formats
    if options.to is not None and "dicom" not in formats:
        raise UserError("--to sends DICOM objects; write them with --format csv,dicom")
    if server is not None or options.to is not None:
        processes.refuse_several("dcmt predict with a DICOMweb server")
    if server is None:
        code = predict_command(options)
    else:
        with TemporaryDirectory(prefix="dcmt_") as folder:
            files = fetch_study(server, study, Path(folder), timeout_s=options.timeout)
            log.info(f"{counted(len(files), 'object')} of study {study} fetched from {server}")
            code = predict_command(argparse.Namespace(**{**vars(options), "images": Path(folder)}))
    if options.to is None or code:
        return code
    made = sorted((options.out / "dicom").glob("*.dcm"))
    return report_sent(store(made, options.to, timeout_s=options.timeout), options.to)
