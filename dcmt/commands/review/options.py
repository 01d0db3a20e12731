"""The options of ``dcmt review``; what a command needs is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Say = Callable[[str], None]
CLAIM = "Maps show where the model looked; they are no segmentation of disease. Research use only, not for diagnosis."


def add_review_commands(commands: Commands, *, say: Say) -> None:
    """``dcmt review export|import|labels|send|sanity``; ``say`` prints."""
    text = "hand cases and attention maps to readers; turn their verdicts into labels"
    steps = commands.add_parser("review", help=text, description=f"{text}. {CLAIM}").add_subparsers(
        required=True, metavar="export|import|labels|send|sanity"
    )

    def add(name: str, module: str, text: str) -> argparse.ArgumentParser:
        def run(options: argparse.Namespace) -> int:
            command = getattr(import_module(f"dcmt.commands.review.{module}"), f"{name}_command")
            code: int = command(options, say=say)
            return code

        parser: argparse.ArgumentParser = steps.add_parser(name, help=text, description=f"{text}. {CLAIM}")
        parser.set_defaults(command=run)
        return parser

    _export_options(add("export", "export", "write cases for readers: a page for the browser, pictures, NIfTI, DICOM"))
    _import_options(add("import", "verdicts", "check verdicts that readers saved, and keep them with the run"))
    _labels_options(add("labels", "verdicts", "write a new manifest with the reviewed grades; readers' agreement"))
    _send_options(add("send", "verdicts", "send exported DICOM objects to a node by C-STORE"))
    _sanity_options(add("sanity", "sanity", "do the maps depend on what was learned, and do they lie on the cartilage"))


def _run_options(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    if device:
        parser.add_argument("--device", default="auto")


def _export_options(parser: argparse.ArgumentParser) -> None:
    _run_options(parser)
    parser.add_argument(
        "--split",
        choices=("unlabeled", "train", "val", "test"),
        default="unlabeled",
        help="unlabeled: training images whose grade is not used, shown without one; train: those whose grade is used",
    )
    parser.add_argument("--format", default="html", help="of html, png, nifti and dicom, with commas (default html)")
    parser.add_argument("--cases", type=int, metavar="N", help="the N cases most worth a look (default: all)")
    parser.add_argument(
        "--by",
        choices=("all", "distance", "flip", "entropy", "overlap", "mismatch"),
        help="what --cases goes by: distance of student and teacher, change on flipping, entropy, low overlap with the "
        "cartilage, mismatch with the recorded grade, or the mean of all (default)",
    )
    parser.add_argument("--out", type=Path, help="folder (default: RUN/review/SPLIT)")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument("--keep-identity", action="store_true", help="DICOM keeps the patient's name and identifiers")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier export")


def _import_options(parser: argparse.ArgumentParser) -> None:
    _run_options(parser, device=False)
    parser.add_argument("verdicts", type=Path, nargs="+", help="JSON files that the page saved, of one or more readers")
    parser.add_argument(
        "--revise", action="store_true", help="let a reader's later verdict count in place of an earlier"
    )

    parser.add_argument(
        "--reader",
        action="append",
        type=_named,
        default=[],
        metavar="GIVEN=NAME",
        help="record the reader GIVEN of a file as NAME: one person in two spellings; GIVEN=GIVEN keeps two persons apart",
    )


def _named(text: str) -> tuple[str, str]:
    given, mark, name = text.partition("=")
    if not mark or not given.strip() or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not GIVEN=NAME")
    return given.strip(), name.strip()


def _labels_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="the new manifest; beside the old one is best")
    parser.add_argument(
        "--skip-held-out", action="store_true", help="leave cases of validation and test out instead of refusing"
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE given by --out")


def _send_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="RUN_OR_FOLDER", help="run folder, or any folder of DICOM objects")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--aet", default="ANY-SCP", help="AE title of the node (default ANY-SCP)")
    parser.add_argument("--calling-aet", default="DCMT", help="AE title of ours, where the node asks (default DCMT)")


def _sanity_options(parser: argparse.ArgumentParser) -> None:
    _run_options(parser)
    parser.add_argument("--split", choices=("train", "val", "test", "unlabeled"), default="test")
    parser.add_argument(
        "--steps", type=int, default=8, help="from intact weights to random ones in N steps (default 8)"
    )
    parser.add_argument("--images", type=int, default=32, help="how many images (default 32)")
