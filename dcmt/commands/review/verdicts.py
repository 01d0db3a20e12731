"""``dcmt review import``, ``labels`` and ``send``: import verdicts, turn them into labels, send DICOM objects."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path

from dcmt.commands.review.files import keep_private, model_hash, open_reviewed, run_name
from dcmt.commands.review.reports import readers_reports
from dcmt.config import GraderConfig
from knee.data.check import drop_bad
from knee.data.manifest import inspect_manifest, read_manifest
from knee.engine.options import config_from_values
from knee.engine.run import refuse_links, require_paths
from knee.errors import UserError, counted
from knee.grades import load_grade_set
from knee.io.files import typed
from knee.review.agreement import agreements
from knee.review.dicom.send import Node, Sent, send
from knee.review.dicom.web import store
from knee.review.labels import RULE, reviewed_labels, write_labels
from knee.review.readers import alike_readers
from knee.review.verdicts import Reader, import_verdicts, read_verdicts
from knee.review.verdicts_file import Expected, read_verdicts_file

log = logging.getLogger(__name__)

_MOST_NAMED = 20


def import_command(options: argparse.Namespace) -> int:
    """Check verdicts files against the run and the model, and append them to ``local/verdicts.csv``: all or nothing."""
    if bool(options.verdicts) == (options.dicom is not None):
        raise UserError("give either verdicts files of the page, or a folder of DICOM reports with --dicom FOLDER|URL")
    run, values, key = open_reviewed(options.run)
    checkpoint = run.checkpoints.best() if options.checkpoint == "best" else run.checkpoints.latest()[0]
    if checkpoint is None:
        raise UserError(f"{options.run} has no valid checkpoint, so the verdicts' model cannot be checked; restore it")
    grades = load_grade_set(values["data"]["grade_set"]).count
    expected = Expected(run=run_name(run), model_hash=model_hash(checkpoint), grades=grades, cases=key.keys())
    table = run.verdicts
    readers = dict(options.reader)
    paths: list[Path] = options.verdicts
    read: Reader = read_verdicts_file
    with ExitStack() as stack:
        if options.dicom is not None:
            reports = readers_reports(options.dicom, run, values, key, expected, timeout_s=options.timeout)
            paths, read = stack.enter_context(reports)
        done = import_verdicts(paths, table, expected=expected, revise=options.revise, readers=readers, read=read)
    keep_private(table)
    revised = f", {done.revised} of them replacing earlier ones" if done.revised else ""
    if done.older:
        revised += f", {done.older} of them older than their readers' verdicts in the table, which stay in force"
    log.info(f"{done.added} verdicts added{revised}, {done.known} already in the table: {table}")
    target = Path(values["data"]["manifest"]).with_name("manifest_reviewed.csv")
    log.info(f"next: dcmt review labels {typed(options.run)} --out {typed(target)}")
    return 0


def labels_command(options: argparse.Namespace) -> int:
    """Write the next version of the manifest; print the rule, the outcomes of the cases, and the readers' agreement."""
    run, values, key = open_reviewed(options.run)
    table = run.verdicts
    if not table.exists():
        raise UserError(
            f"{options.run} has no verdicts yet; hand them in with: dcmt review import {typed(options.run)} FILE…"
        )
    given = {name: value for name, value in values.items() if name != "kind"}
    config: GraderConfig = config_from_values(GraderConfig, given, where=str(run.config))
    require_paths(run, config, "data.grade_set", "data.manifest")
    grade_set = load_grade_set(values["data"]["grade_set"])
    verdicts = read_verdicts(table, run=run_name(run), grades=grade_set.count)
    if values["data"]["skip_bad"]:
        inspection = inspect_manifest(values["data"]["manifest"], grade_set)
        manifest = drop_bad(inspection, None)
        if inspection.bad_lines:
            log.info(
                f"{counted(len(inspection.bad_lines), 'row')} that the run left out as bad are also left out of the new version"
            )
    else:
        manifest = read_manifest(values["data"]["manifest"], grade_set)
    labels = reviewed_labels(manifest, verdicts, key, skip_held_out=options.skip_held_out)
    write_labels(options.out, manifest, labels, force=options.force)
    log.info(RULE)
    log.info(f"{labels}: {options.out}")
    if labels.undecided:
        named = ", ".join(labels.undecided[:_MOST_NAMED])
        log.info(f"for a consensus reading: {named}{' …' if len(labels.undecided) > _MOST_NAMED else ''}")
    for names in alike_readers(verdict.reviewer for verdict in verdicts):
        log.info(
            f"note: {', '.join(map(repr, names))} may be one reader but count as {len(names)}; "
            f"if they are one, correct the names in {table}"
        )
    log.info("agreement, only blind grades (quadratic kappa, 95% intervals over patients):")
    found = agreements(verdicts, key)
    for agreement in found:
        log.info(f"  {agreement}")
    if not found:
        log.info("  unknown: no case was graded blind")
    log.info(
        f"to train on it, add --data.manifest {options.out} to the run's options; reviewed grades are labels at any fraction"
    )
    return 0


def send_command(options: argparse.Namespace) -> int:
    """Store a folder's DICOM objects on a node or a DICOMweb server; exit code 1 if it refused some."""
    if (options.to is None) == (options.host is None or options.port is None):
        raise UserError("give either a node, --host NAME --port NUMBER, or a DICOMweb server, --to URL")
    source: Path = options.source
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give a run folder or one of DICOM objects")
    if (source / "config.yaml").exists():
        refuse_links(source)
    # Of a run folder send only the review, since the folder may also contain its data.
    inside = source / "review" if (source / "config.yaml").exists() else source
    paths = sorted(inside.rglob("*.dcm"))
    if not paths:
        raise UserError(f"{inside} contains no DICOM objects (*.dcm); export with --format dicom first")
    if options.dry_run:
        size = sum(path.stat().st_size for path in paths) / 2**20
        log.info(f"{counted(len(paths), 'object')} of {size:.1f} MiB would be sent; nothing was sent")
        return 0
    if options.to is not None:
        return report_sent(store(paths, options.to, timeout_s=options.timeout), options.to)
    node = Node(options.host, options.port, options.aet, options.calling_aet, options.tls)
    return report_sent(send(paths, node, timeout_s=options.timeout), str(node))


def report_sent(sent: Sent, receiver: str) -> int:
    """Log what was accepted and refused; 1 if some objects were refused."""
    log.info(f"{sent} by {receiver}")
    for path, reason in sent.refused[:_MOST_NAMED]:
        log.info(f"  refused: {path.name}: {reason}")
    if len(sent.refused) > _MOST_NAMED:
        log.info(f"  … and {len(sent.refused) - _MOST_NAMED} more")
    return 1 if sent.refused else 0
