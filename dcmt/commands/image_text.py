"""Registration of the commands for image-text runs (package ``image_text``)."""

from __future__ import annotations

import argparse
from pathlib import Path

from dcmt.commands.registry import command

Parser = argparse.ArgumentParser


def _run_options(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder of an image-text run")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--device", default="auto")


@command(
    "retrieve",
    "retrieve reports by images and images by reports: recall with chance, bound and intervals",
    runs="image_text.commands:retrieve_command",
)
def retrieve(parser: Parser) -> None:
    """Options of ``dcmt retrieve``."""
    _run_options(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--trained-on", action="store_true", help="allow --split train, although it is too optimistic")
    parser.add_argument(
        "--covariate",
        action="append",
        default=[],
        metavar="NAME",
        help="a table column: what all of them alone could retrieve is reported, too",
    )
    parser.add_argument("--queries", type=int, default=6, help="queries on the sheet of pictures (default 6)")
    parser.add_argument(
        "--show-reports", action="store_true", help="also write a sheet with the reports' texts, into local/ of the run"
    )


@command(
    "embed", "write the embeddings of images to a .npz file", runs="image_text.commands:embed_command", shared=True
)
def embed(parser: Parser) -> None:
    """Options of ``dcmt embed``."""
    _run_options(parser)
    parser.add_argument("images", type=Path, help="one image, or a folder of images")
    parser.add_argument("--out", type=Path, required=True, help="the file, with the suffix .npz")
    parser.add_argument("--force", action="store_true", help="overwrite the file")
