"""``dcmt predict --from URL --study UID`` and ``--to URL``: a study from a DICOMweb server, graded, and its objects stored."""

from __future__ import annotations

import argparse
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from dcmt.commands.new_patients.graded_files import chosen_formats
from dcmt.commands.predict import predict_command
from dcmt.onnx.predict import SUFFIX, predict_exported
from knee.errors import UserError, counted
from knee.nn import processes
from knee.review.dicom.web import check_address, fetch_study, store

log = logging.getLogger(__name__)


def predict_from_anywhere(options: argparse.Namespace) -> int:
    """Grade the images of a path or of a study; exit code 1 if a server refused some of the objects."""
    server, study = options.server, options.study
    if (server is None) != (study is None) or (server is None) == (options.images is None):
        raise UserError("give either a path of images, or a study of a DICOMweb server: --from URL --study UID")
    formats = chosen_formats(options.format)
    options.no_overlays |= "png" not in formats
    if options.to is not None and "dicom" not in formats:
        raise UserError("--to sends DICOM objects; write them with --format csv,dicom")
    if server is not None or options.to is not None:
        processes.refuse_several("dcmt predict with a DICOMweb server")
    if options.to is None:
        return _predict(options)
    check_address(options.to)
    files: SimpleQueue[Path | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        # Each object is sent while the next one is made.
        sent = pool.submit(store, iter(files.get, None), options.to, timeout_s=options.timeout)
        try:
            code = _predict(options, written=lambda path: files.put(path) if path.suffix == ".dcm" else None)
        except BaseException:
            while not files.empty():
                files.get()
            raise
        finally:
            files.put(None)
    from dcmt.commands.review.verdicts import report_sent  # slow, and only this needs it

    return code or report_sent(sent.result(), options.to)


def _predict(options: argparse.Namespace, **more: object) -> int:
    """Grade the images of the path, or those of the study, which are removed at the end."""
    predict = predict_exported if options.run.suffix == SUFFIX else predict_command
    if options.server is None:
        return predict(argparse.Namespace(**vars(options), **more))
    with TemporaryDirectory(prefix="dcmt_") as folder:
        files = fetch_study(options.server, options.study, Path(folder), timeout_s=options.timeout)
        log.info(f"{counted(len(files), 'object')} of study {options.study} fetched from {options.server}")
        return predict(argparse.Namespace(**{**vars(options), **more, "images": Path(folder)}))
