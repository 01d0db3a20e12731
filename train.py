"""Train a grader: ``python train.py --config configs/phantom.yaml --labeled-fraction 0.1`` (the same as ``dcmt train``)."""

import sys

from dcmt.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
