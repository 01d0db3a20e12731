"""The command line: ``dcmt COMMAND`` and ``train.py``.

Importing this module is quick; what a command needs is imported when it runs. A mistake of the user ends with one clear
message and exit code 2; anything else that escapes is a bug of ours.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcmt.commands.review.options import add_review_commands
from knee.errors import UserError

_RESEARCH = "Research use only: not a medical device, not for diagnosis."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _print_what_the_terminal_cannot()
    try:
        return _run(given)
    except UserError as error:
        print(f"dcmt: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output, `head` say, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        print(
            f"dcmt: {error.strerror}: {error.filename or 'while writing'}; {_OF_THE_MACHINE[error.errno]}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("dcmt: interrupted", file=sys.stderr)
        return 130


def _print_what_the_terminal_cannot() -> None:
    """Letters that the terminal's encoding lacks are written out (\\u2013), so that no command ends because of them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


_FORBIDDEN = "choose a place that you may write to"
_NO_FOLDER = "a file stands where a folder is needed, or the other way round; choose another path"
_OF_THE_MACHINE = {
    errno.ENOSPC: "free some space and go on (a run: by --resume)",
    errno.EDQUOT: "free some of your quota and go on (a run: by --resume)",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or network drive reports a fault; look at it, then go on (a run: by --resume)",
}


def _run(given: list[str]) -> int:
    # These take every option of their config, which argparse need not know.
    if {"--help", "-h"} & set(given) and (given[:1] == ["train"] or given[:2] == ["segment", "train"]):
        return _train_help(given)
    if given[:1] == ["train"]:
        from dcmt.train import train_command

        return train_command(given[1:], say=print)
    if given[:1] in (["zeroshot"], ["probe"]):
        from dcmt.commands.untrained import probe_command, zeroshot_command

        return (zeroshot_command if given[0] == "zeroshot" else probe_command)(given[1:], say=print)
    if given[:2] == ["segment", "train"]:
        from dcmt.commands.segment import train_command as segment_train_command

        return segment_train_command(given[2:], say=print)
    options = _parser().parse_args(given)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _train_help(given: list[str]) -> int:
    from dcmt.config import GraderConfig
    from knee.engine.options import train_help
    from segmentation.config import SegmenterConfig

    if given[0] == "train":
        print(train_help(GraderConfig, program="train.py"))
    else:
        print(train_help(SegmenterConfig, program="dcmt segment train", by_grades=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcmt", description=f"Grade knee osteoarthritis from few labels. {_RESEARCH}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _data_commands(commands)
    _train_commands(commands)
    _clip_commands(commands)
    _run_commands(commands)
    add_review_commands(commands, say=print)
    return parser


def _command(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """The function ``name`` of ``module``, which is imported when the command runs: ``--help`` stays quick."""

    def run(options: argparse.Namespace) -> int:
        code: int = getattr(importlib.import_module(module), name)(options, say=print)
        return code

    return run


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def _pixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 0 to 256")
    return value


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _sheet_options(manifest: argparse.ArgumentParser) -> None:
    manifest.add_argument("--grades", type=Path, metavar="FILE", help="grades in a spreadsheet: CSV or Excel (.xlsx)")
    sheet = manifest.add_argument_group("how the spreadsheet is read, where it does not say so itself; may be repeated")
    sheet.add_argument("--sheet", metavar="NAME", help="which sheet of the file")
    sheet.add_argument(
        "--column",
        action="append",
        type=_pair,
        default=[],
        metavar="ROLE=NAME",
        help="the column that is the image, patient, side, visit, split or grade; grade_L and grade_R for a row a patient",
    )
    sheet.add_argument(
        "--side",
        action="append",
        type=_pair,
        default=[],
        metavar="VALUE=L",
        help="what stands for left (=L), or right (=R)",
    )
    sheet.add_argument("--missing", action="append", default=[], metavar="VALUE", help="what stands for not graded")
    sheet.add_argument(
        "--only",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=VALUE",
        help="take the rows with this value alone",
    )
    sheet.add_argument(
        "--prefer",
        action="append",
        type=_pair,
        default=[],
        metavar="NAME=A,B",
        help="of several grades of a knee, take the one whose row has A in the column NAME, else B, and so on",
    )


def _data_commands(commands: _Commands) -> None:
    phantom = commands.add_parser("phantom", help="write the built-in phantom: images, masks, manifest")
    phantom.add_argument("folder", type=Path)
    phantom.add_argument("--kind", choices=("mr", "xray"), default="mr", help="sagittal MR slices or AP radiographs")
    phantom.add_argument("--patients", type=int, help="number of patients (default: about 2,300 images)")
    phantom.add_argument("--slices", type=int, help="images a patient")
    phantom.add_argument("--size", type=int, default=96, help="side of an image in pixels (default 96)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--drawn-masks", type=int, default=40, help="training slices with a drawn mask (default 40)")
    phantom.add_argument("--force", action="store_true", help="write into a folder that holds something")
    phantom.set_defaults(command=_command("dcmt.commands.data", "phantom"))

    manifest = commands.add_parser("manifest", help="make a manifest from a folder of images")
    manifest.add_argument("folder", type=Path)
    manifest.add_argument("--out", type=Path, help="the manifest (default: manifest.csv in the folder)")
    manifest.add_argument("--layout", choices=("auto", "chen", "tree", "plain"), default="auto")
    manifest.add_argument("--grade-set", default="kl", help="kl, cartilage, or a YAML of your own")
    manifest.add_argument(
        "--pattern",
        help="what tells the patient: folder, file, or a regular expression with a group `patient`, and perhaps `side` and "
        "`grade`, in the file's path",
    )
    _sheet_options(manifest)
    manifest.add_argument("--force", action="store_true", help="overwrite an existing manifest")
    manifest.set_defaults(command=_command("dcmt.commands.data", "manifest"))

    check = commands.add_parser("check", help="read a manifest and every file it names; list all faults")
    check.add_argument("manifest", type=Path)
    check.add_argument("--grade-set", default="kl")
    check.add_argument("--split", type=Path, help="check this split file against the manifest too")
    check.add_argument("--skip-bad", type=Path, metavar="FILE", help="list the bad rows in FILE and end with 0")
    check.add_argument("--force", action="store_true", help="overwrite FILE")
    check.set_defaults(command=_command("dcmt.commands.data", "check"))

    split = commands.add_parser("split", help="split a manifest by patient, with ranks for every labeled fraction")
    split.add_argument("manifest", type=Path)
    split.add_argument("--out", type=Path, required=True, help="the split file, data_splits/NAME.csv")
    split.add_argument("--grade-set", default="kl")
    split.add_argument("--fractions", type=float, nargs=3, default=(0.7, 0.1, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    split.add_argument(
        "--folds", type=int, default=0, help="write so many cross-validation splits instead, OUT with _K"
    )
    split.add_argument("--anew", action="store_true", help="ignore the manifest's own split column")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("--skip-bad", type=Path, metavar="FILE", help="leave out bad rows, and list them in FILE")
    split.add_argument("--force", action="store_true", help="overwrite an existing split, and FILE")
    split.set_defaults(command=_command("dcmt.commands.data", "split"))


def _train_commands(commands: _Commands) -> None:
    commands.add_parser("train", help="train a grader (train --help lists every option)", add_help=False)
    segment = commands.add_parser("segment", help="train the cartilage segmenter, or write masks with it")
    steps = segment.add_subparsers(required=True, metavar="train|predict")
    steps.add_parser("train", help="train the U-Net on the rows that have masks", add_help=False)
    predict = steps.add_parser("predict", help="write a mask for every row that has none, and a manifest with them")
    predict.add_argument("run", type=Path)
    predict.add_argument("--manifest", type=Path, help="the manifest (default: the run's)")
    predict.add_argument("--out", type=Path, required=True, help="folder of the masks")
    predict.add_argument(
        "--manifest-out", type=Path, help="the new manifest (default: manifest_masks.csv beside the old)"
    )
    predict.add_argument("--rows", choices=("train", "all"), default="train", help="rows of which splits get a mask")
    predict.add_argument(
        "--dilation", type=_pixels, default=0.0, help="dilate what is written, in px at 256 (default 0)"
    )
    predict.add_argument("--device", default="auto")
    predict.add_argument("--force", action="store_true", help="overwrite masks and manifest")
    predict.set_defaults(command=_command("dcmt.commands.segment", "predict_command"))


def _trained_on_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trained-on", action="store_true", help="allow --split train: how well images are remembered")


def _mirrored_pair_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mirrored-pair",
        action="store_true",
        help="answer with the mean for an image and its mirror image: where left and right tell the same; twice the time",
    )


def _flip_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="grade mirrored images too, for flip disagreement; --no-flip takes half the time",
    )


def _clip_commands(commands: _Commands) -> None:
    for name, text in (
        ("zeroshot", "grade with an untrained CLIP model and prompts"),
        ("probe", "fit a linear classifier on frozen embeddings"),
    ):
        commands.add_parser(name, help=f"{text} ({name} --help lists every option)", add_help=False)


def _run_commands(commands: _Commands) -> None:
    def add(name: str, text: str, *, module: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text}. {_RESEARCH}")
        parser.add_argument("run", type=Path, help="run folder")
        parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
        parser.add_argument("--device", default="auto")
        parser.set_defaults(command=_command(module, f"{name}_command"))
        return parser

    evaluate = add(
        "evaluate",
        "grade a split with student and teacher: metrics with intervals, figures, predictions",
        module="dcmt.commands.evaluate",
    )
    evaluate.add_argument("--split", choices=("train", "val", "test"), default="test")
    _trained_on_option(evaluate)
    _flip_option(evaluate)
    _mirrored_pair_option(evaluate)

    verify = commands.add_parser(
        "verify", help="recompute a run's reported metrics from its predictions and its weights"
    )
    verify.add_argument("run", type=Path, help="run folder")
    verify.add_argument("--split", choices=("train", "val", "test"), default="test")
    verify.add_argument("--no-weights", action="store_true", help="from the stored predictions alone")
    verify.add_argument("--device", default="auto")
    verify.set_defaults(command=_command("dcmt.commands.verify", "verify_command"))

    predict = add(
        "predict", "grade an image or a folder with the teacher: a CSV and overlays", module="dcmt.commands.predict"
    )
    predict.add_argument("images", type=Path, help="one image or a folder of images")
    predict.add_argument("--out", type=Path, required=True, help="folder for predictions.csv and overlays")
    predict.add_argument("--student", action="store_true", help="grade with the student instead")
    _mirrored_pair_option(predict)
    predict.add_argument("--no-overlays", action="store_true")
    predict.add_argument("--force", action="store_true", help="write into a folder that holds something")

    compare = commands.add_parser(
        "compare",
        help="two runs on the same cases: metrics side by side, paired differences",
        description=f"The metrics of two runs and the second minus the first, with paired intervals. {_RESEARCH}",
    )
    compare.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="run folder")
    compare.add_argument("--split", choices=("train", "val", "test"), default="test")
    compare.add_argument("--network", choices=("teacher", "student"), default="teacher")
    compare.add_argument("--out", type=Path, help="folder for comparison.json and the confusion matrices side by side")
    compare.add_argument("--force", action="store_true", help="overwrite an earlier comparison in --out")
    compare.add_argument("--checkpoint", choices=("best", "last"), default="best")
    compare.add_argument("--device", default="auto")
    _trained_on_option(compare)
    _flip_option(compare)
    _mirrored_pair_option(compare)
    compare.set_defaults(command=_command("dcmt.commands.compare", "compare_command"))

    attention = add(
        "attention",
        "overlays of where student and teacher looked, for the cases of a split",
        module="dcmt.commands.overlays",
    )
    attention.add_argument("--split", choices=("train", "val", "test", "unlabeled"), default="test")
    attention.add_argument(
        "--cases", type=_count, default=24, help="how many, spread over the grades; 0: all (default 24)"
    )
    attention.add_argument("--out", type=Path, help="folder (default: RUN/attention_SPLIT)")
    attention.add_argument("--force", action="store_true", help="overwrite overlays")


if __name__ == "__main__":
    sys.exit(main())
