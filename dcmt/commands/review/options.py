"""Registration of ``dcmt review`` and its options; a command's modules are imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcmt.commands.options import identity_options, run_options
from dcmt.commands.registry import command, group
from dcmt.commands.values import seconds
from knee.review import CLAIM

group("review", "export cases and attention maps for readers; turn their verdicts into labels")


@command(
    "review export",
    "export cases for readers: a page for the browser, pictures, NIfTI, DICOM",
    runs="dcmt.commands.review.export:export_command",
    closing=CLAIM,
)
def export_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``dcmt review export``."""
    run_options(parser)
    parser.add_argument(
        "--split",
        choices=("unlabeled", "train", "val", "test"),
        default="unlabeled",
        help="unlabeled: training images whose grade is not used, shown without a grade; train: those whose grade is used",
    )
    parser.add_argument(
        "--format", default="html", help="html, png, nifti, dicom, or several separated by commas (default html)"
    )
    parser.add_argument("--cases", type=int, metavar="N", help="export the N most doubtful cases (default: all)")
    parser.add_argument(
        "--by",
        choices=("all", "distance", "flip", "entropy", "overlap", "mismatch"),
        help="measure of doubt for --cases: distance of student and teacher, change under horizontal flip, entropy, low "
        "overlap with the cartilage, mismatch with the recorded grade, or the mean of all (default)",
    )
    parser.add_argument("--out", type=Path, help="folder (default: RUN/review/SPLIT)")
    parser.add_argument("--title", help="heading of the page")
    identity_options(parser)
    parser.add_argument(
        "--maps", action="store_true", help="DICOM has parametric maps of MR series, which few viewers show"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an earlier export")


@command(
    "review import",
    "check the readers' verdicts files, and store the verdicts in the run",
    runs="dcmt.commands.review.verdicts:import_command",
    closing=CLAIM,
)
def import_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``dcmt review import``."""
    run_options(parser, device=False)
    parser.add_argument(
        "verdicts", type=Path, nargs="*", help="JSON files downloaded from the page, by one or more readers"
    )
    parser.add_argument(
        "--dicom",
        metavar="FOLDER|URL",
        help="import structured reports that readers made in a DICOM viewer: text KL 2, agree, disagree, unsure or bad image; "
        "of a DICOMweb server, those in the studies of the exported cases (its token: DICOMWEB_TOKEN)",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, help="how long to wait for a server, in s (default 60)"
    )
    parser.add_argument(
        "--revise", action="store_true", help="let later verdicts replace earlier ones by the same reader"
    )

    parser.add_argument(
        "--reader",
        action="append",
        type=_named,
        default=[],
        metavar="GIVEN=NAME",
        help="record the reader GIVEN of a file as NAME, for two spellings of one person; GIVEN=GIVEN for different persons",
    )


def _named(text: str) -> tuple[str, str]:
    given, mark, name = text.partition("=")
    if not mark or not given.strip() or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not GIVEN=NAME")
    return given.strip(), name.strip()


@command(
    "review labels",
    "write a new manifest with the reviewed grades; print the readers' agreement",
    runs="dcmt.commands.review.verdicts:labels_command",
    closing=CLAIM,
)
def labels_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``dcmt review labels``."""
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="the new manifest, best next to the old one")
    parser.add_argument(
        "--skip-held-out", action="store_true", help="leave out cases of validation and test instead of refusing"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file given by --out")


@command(
    "review send",
    "send exported DICOM objects to a node by C-STORE, or to a DICOMweb server",
    runs="dcmt.commands.review.verdicts:send_command",
    closing=CLAIM,
)
def send_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``dcmt review send``."""
    parser.add_argument("source", type=Path, metavar="RUN_OR_FOLDER", help="run folder, or any folder of DICOM objects")
    parser.add_argument("--host", help="the node; with --port")
    parser.add_argument("--port", type=int)
    parser.add_argument(
        "--to", metavar="URL", help="a DICOMweb server instead; its token is read from the environment: DICOMWEB_TOKEN"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, help="how long to wait for an answer, in s (default 60)"
    )
    parser.add_argument("--aet", default="ANY-SCP", help="AE title of the node (default ANY-SCP)")
    parser.add_argument("--calling-aet", default="DCMT", help="our AE title (default DCMT)")
    parser.add_argument("--tls", action="store_true", help="encrypt, and verify the node's certificate")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")


@command(
    "review sanity",
    "check whether maps depend on the learned weights, and their overlap with the cartilage",
    runs="dcmt.commands.review.sanity:sanity_command",
    closing=CLAIM,
)
def sanity_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``dcmt review sanity``."""
    run_options(parser)
    parser.add_argument("--split", choices=("train", "val", "test", "unlabeled"), default="test")
    parser.add_argument("--steps", type=int, default=8, help="steps from the original to random weights (default 8)")
    parser.add_argument("--images", type=int, default=32, help="number of images (default 32)")
