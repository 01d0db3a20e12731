"""The papers' tables, run again: ``python -m experiments.results`` (see docs/results/README.md)."""
