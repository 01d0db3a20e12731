"""Registration of the commands and their options; a command's modules are imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcmt.commands import values
from dcmt.commands.registry import command, config_command, group
from knee.engine.config import EXTERNAL

Parser = argparse.ArgumentParser


@command("phantom", "write the built-in phantom: images, masks, manifest", runs="dcmt.commands.data:phantom")
def phantom(parser: Parser) -> None:
    """Options of ``dcmt phantom``."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=("mr", "xray"), default="mr", help="sagittal MR slices or AP radiographs")
    parser.add_argument("--patients", type=int, help="number of patients (default: about 2,300 images)")
    parser.add_argument("--slices", type=int, help="images per patient")
    parser.add_argument("--size", type=int, default=96, help="side of an image in pixels (default 96)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn-masks", type=int, default=40, help="training slices with a drawn mask (default 40)")
    parser.add_argument("--reports", action="store_true", help="also reports, age, sex, BMI, pain (--kind xray)")
    parser.add_argument("--force", action="store_true", help="write into a folder that is not empty")


@command("manifest", "make a manifest from a folder of images", runs="dcmt.commands.data:manifest")
def manifest(parser: Parser) -> None:
    """Options of ``dcmt manifest``."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="the manifest (default: manifest.csv in the folder)")
    parser.add_argument("--layout", choices=("auto", "chen", "tree", "plain"), default="auto")
    parser.add_argument("--grade-set", default="kl", help="kl, cartilage, or your own YAML file")
    parser.add_argument(
        "--pattern",
        help="where the patient's name is: folder, file, or a regular expression for the file's path with a group `patient`, "
        "and optionally `side` and `grade`",
    )
    slices_option(parser)
    _sheet_options(parser)
    parser.add_argument("--force", action="store_true", help="overwrite an existing manifest")


@command(
    "crop", "write one image per knee from films of both legs or long views", runs="dcmt.commands.crop:crop_command"
)
def crop(parser: Parser) -> None:
    """Options of ``dcmt crop``."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="new folder for crops, manifest and contact sheets")
    parser.add_argument(
        "--size-mm",
        type=values.millimetres,
        default=140.0,
        help="side of a crop in mm where the spacing is known (default 140)",
    )
    parser.add_argument("--layout", choices=("auto", "chen", "tree", "plain"), default="auto")
    parser.add_argument("--grade-set", default="kl", help="kl, cartilage, or your own YAML file")
    parser.add_argument("--pattern", help="where the patient's name is, as for dcmt manifest")


def slices_option(parser: Parser) -> None:
    """``--slices``, for every command that reads volumes."""
    parser.add_argument(
        "--slices",
        type=values.slices,
        metavar="CHOICE",
        help="slices of volumes (NIfTI files, DICOM series by position): all, middle:20, or 10-60, numbered from 0",
    )


def _sheet_options(parser: Parser) -> None:
    parser.add_argument("--grades", type=Path, metavar="FILE", help="grades in a spreadsheet: CSV or Excel (.xlsx)")
    sheet = parser.add_argument_group("how to read the spreadsheet, if this is not detected; options may be repeated")
    sheet.add_argument("--sheet", metavar="NAME", help="the sheet of the file")
    sheet.add_argument(
        "--column",
        action="append",
        type=values.pair,
        default=[],
        metavar="ROLE=NAME",
        help="the column of the image, patient, side, visit, split or grade; grade_L and grade_R for one row per patient",
    )
    sheet.add_argument(
        "--side",
        action="append",
        type=values.pair,
        default=[],
        metavar="VALUE=L",
        help="the value that means left (=L) or right (=R)",
    )
    sheet.add_argument(
        "--missing", action="append", default=[], metavar="VALUE", help="the value that means not graded"
    )
    sheet.add_argument(
        "--only",
        action="append",
        type=values.pair,
        default=[],
        metavar="NAME=VALUE",
        help="use only the rows with this value",
    )
    sheet.add_argument(
        "--report", metavar="NAME", help="the column with the reports, or with paths of their .txt files"
    )
    sheet.add_argument(
        "--table", action="append", default=[], metavar="NAME", help="a further column for the manifest, such as age"
    )
    sheet.add_argument(
        "--prefer",
        action="append",
        type=values.pair,
        default=[],
        metavar="NAME=A,B",
        help="if a knee has several grades, use the row with A in the column NAME, else the one with B, and so on",
    )


@command("check", "read a manifest and all its files, and list all errors", runs="dcmt.commands.data:check")
def check(parser: Parser) -> None:
    """Options of ``dcmt check``."""
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--grade-set", default="kl")
    parser.add_argument("--split", type=Path, help="also check this split file against the manifest")
    parser.add_argument("--skip-bad", type=Path, metavar="FILE", help="list the bad rows in FILE and exit with code 0")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")


@command("split", "split a manifest by patient, with ranks for the labeled fractions", runs="dcmt.commands.data:split")
def split(parser: Parser) -> None:
    """Options of ``dcmt split``."""
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the split file, data_splits/NAME.csv")
    parser.add_argument("--grade-set", default="kl")
    parser.add_argument("--fractions", type=float, nargs=3, default=(0.7, 0.1, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    parser.add_argument(
        "--folds", type=int, default=0, help="write this many cross-validation splits instead, as OUT_K"
    )
    parser.add_argument("--from-scratch", action="store_true", help="ignore the manifest's own split column")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-bad", type=Path, metavar="FILE", help="leave out bad rows, and list them in FILE")
    parser.add_argument("--force", action="store_true", help="overwrite an existing split, and FILE")


config_command(
    "cache",
    "decode a config's images once, for all runs on them (cache --help lists every option)",
    runs="dcmt.commands.data:cache",
)
config_command("train", "train a grader (train --help lists every option)", runs="dcmt.train:train_command")
config_command(
    "self-train",
    "train in rounds, each on soft targets for the unlabeled images (self-train --help lists every option)",
    runs="dcmt.self_training:self_train_command",
)
group("segment", "train the cartilage segmenter, or write masks with it")


config_command("segment train", "train the U-Net on the rows with masks", runs="dcmt.commands.segment:train_command")


@command(
    "segment predict",
    "write a mask for every row without one, and a manifest with the masks",
    runs="dcmt.commands.segment:predict_command",
    shared=True,
)
def segment_predict(parser: Parser) -> None:
    """Options of ``dcmt segment predict``."""
    parser.add_argument("run", type=Path)
    parser.add_argument("--manifest", type=Path, help="the manifest (default: the run's)")
    parser.add_argument("--split", type=Path, help="the split of the manifest's images (default: the run's)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the masks")
    parser.add_argument(
        "--manifest-out", type=Path, help="the new manifest (default: manifest_masks.csv next to the old one)"
    )
    parser.add_argument("--rows", choices=("train", "all"), default="train", help="the splits whose rows get a mask")
    parser.add_argument(
        "--dilation", type=values.pixels, default=0.0, help="dilation of the written masks, in px at 256 (default 0)"
    )
    parser.add_argument("--device", default="auto")
    external_model_option(parser)
    parser.add_argument("--force", action="store_true", help="overwrite masks and manifest")


config_command(
    "zeroshot",
    "grade with an untrained CLIP model and prompts (zeroshot --help lists every option)",
    runs="dcmt.commands.untrained:zeroshot_command",
)
config_command(
    "probe",
    "fit a linear classifier on frozen embeddings (probe --help lists every option)",
    runs="dcmt.commands.untrained:probe_command",
)


def _trained_on_option(parser: Parser) -> None:
    parser.add_argument(
        "--trained-on",
        action="store_true",
        help="allow --split train, although metrics on training images are too optimistic",
    )


def identity_options(parser: Parser) -> None:
    """What DICOM objects keep of the patient, for every command that writes some."""
    parser.add_argument("--keep-identity", action="store_true", help="DICOM keeps the patient's name and identifiers")
    parser.add_argument(
        "--shift-dates",
        action="store_true",
        help="DICOM keeps study dates, shifted into the past by 1–365 days, the same for all studies of a patient",
    )


def flip_tta_option(parser: Parser) -> None:
    """``--flip-tta``, for every command that grades."""
    parser.add_argument(
        "--flip-tta",
        action="store_true",
        help="flip TTA: average predictions over each image and its horizontal flip; for frontal views, takes twice the time",
    )


def _prior_option(parser: Parser) -> None:
    parser.add_argument(
        "--prior-correction",
        action="store_true",
        help="divide the probabilities by the frequencies of the training labels, which favors rare grades (balanced accuracy)",
    )


def _flip_option(parser: Parser) -> None:
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also grade horizontal flips, for flip disagreement; --no-flip takes half the time",
    )


def external_model_option(parser: Parser) -> None:
    """``--external-model``, for every command that builds the network of a run folder."""
    parser.add_argument(
        EXTERNAL,
        action="store_true",
        help="allow a model of a hub or a folder in the run (hf-hub:, local-dir:, biomedclip). Without this option, "
        "opening a run downloads nothing and loads no code; use it only for runs and models that you trust",
    )


def run_options(parser: Parser, *, device: bool = True, what: str = "run folder") -> None:
    """The run folder, its checkpoint, and, where networks are evaluated (``device``), how."""
    parser.add_argument("run", type=Path, help=what)
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    if device:
        parser.add_argument("--device", default="auto")
        external_model_option(parser)


@command(
    "evaluate",
    "grade a split with student and teacher: metrics with intervals, figures, predictions",
    runs="dcmt.commands.evaluate:evaluate_command",
    shared=True,
)
def evaluate(parser: Parser) -> None:
    """Options of ``dcmt evaluate``."""
    run_options(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    _trained_on_option(parser)
    _flip_option(parser)
    flip_tta_option(parser)
    _prior_option(parser)


@command(
    "verify",
    "recompute a run's metrics from its stored predictions and from its weights",
    runs="dcmt.commands.verify:verify_command",
)
def verify(parser: Parser) -> None:
    """Options of ``dcmt verify``."""
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--no-weights", action="store_true", help="use only the stored predictions")
    parser.add_argument("--device", default="auto")
    external_model_option(parser)


@command(
    "compare",
    "compare two runs on the same cases: metrics side by side, paired differences",
    runs="dcmt.commands.compare:compare_command",
)
def compare(parser: Parser) -> None:
    """Options of ``dcmt compare``."""
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="run folder")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--network", choices=("teacher", "student"), default="teacher")
    parser.add_argument("--out", type=Path, help="folder for comparison.json and the confusion matrices side by side")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier comparison in --out")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--device", default="auto")
    external_model_option(parser)
    _trained_on_option(parser)
    _flip_option(parser)
    flip_tta_option(parser)
    _prior_option(parser)


@command(
    "attention",
    "write overlays of the attention of student and teacher for the cases of a split",
    runs="dcmt.commands.overlays:attention_command",
)
def attention(parser: Parser) -> None:
    """Options of ``dcmt attention``."""
    run_options(parser)
    parser.add_argument("--split", choices=("train", "val", "test", "unlabeled"), default="test")
    parser.add_argument(
        "--cases", type=_count, default=24, help="number of cases, spread over the grades; 0: all (default 24)"
    )
    parser.add_argument("--out", type=Path, help="folder (default: RUN/attention_SPLIT)")
    parser.add_argument("--force", action="store_true", help="overwrite overlays")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)
