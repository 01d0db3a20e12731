"""Registration of the commands for images outside the data of a run, and of export."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcmt.commands import values
from dcmt.commands.options import external_model_option, flip_tta_option, identity_options, run_options, slices_option
from dcmt.commands.registry import command

Parser = argparse.ArgumentParser


@command(
    "predict",
    "grade an image or a folder with the teacher; write a CSV and overlays",
    runs="dcmt.onnx.predict:predict_command",
    shared=True,
)
def predict(parser: Parser) -> None:
    """Options of ``dcmt predict``."""
    run_options(parser, what="run folder, or a file of dcmt export")
    parser.add_argument("images", type=Path, nargs="?", help="one image, a volume, or a folder of images")
    parser.add_argument(
        "--from",
        dest="server",
        metavar="URL",
        help="grade a study of a DICOMweb server instead; its token is read from the environment: DICOMWEB_TOKEN",
    )
    parser.add_argument("--study", metavar="UID", help="the study to fetch by --from")
    parser.add_argument("--to", metavar="URL", help="store the DICOM objects on a DICOMweb server")
    parser.add_argument(
        "--timeout", type=values.seconds, default=60.0, help="how long to wait for a server, in s (default 60)"
    )
    slices_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for predictions.csv and overlays")
    parser.add_argument("--student", action="store_true", help="grade with the student instead")
    flip_tta_option(parser)
    parser.add_argument(
        "--grade-anyway", action="store_true", help="also grade images that are unlike the training images"
    )
    parser.add_argument("--no-overlays", action="store_true", help="like --format csv")
    parser.add_argument(
        "--format",
        default="csv,png",
        help="csv (always written), png (overlays), html, nifti, dicom, separated by commas (default csv,png)",
    )
    identity_options(parser)
    parser.add_argument("--force", action="store_true", help="write into a folder that is not empty")


@command("export", "write a trained network as one ONNX file", runs="dcmt.onnx.export:export_command")
def export(parser: Parser) -> None:
    """Options of ``dcmt export``."""
    run_options(parser, device=False)
    external_model_option(parser)
    parser.add_argument("--format", choices=("onnx",), default="onnx")
    parser.add_argument("--out", type=Path, required=True, help="the file, FILE.onnx")
    parser.add_argument("--student", action="store_true", help="the student instead of the teacher")
    flip_tta_option(parser)
    parser.add_argument(
        "--int8",
        nargs="?",
        const="",
        choices=("", "val", "test"),
        metavar="SPLIT",
        help="weights as 8-bit integers; the cost is measured on random images, and on the graded images of val or test",
    )
    parser.add_argument("--license", default="", metavar="TEXT", help="the licence of the weights, for the metadata")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
