"""The experiment of the review circle: what it writes beside data that others share."""

from __future__ import annotations

from argparse import Namespace

from experiments.review_circle import data_manifest, make_start, read_truth
from knee.grades import load_grade_set


def test_circles_in_folders_of_one_name_keep_their_manifests_apart(tmp_path):
    grades = load_grade_set("cartilage")

    def options(place: str, fraction: float) -> Namespace:
        named = {"folder": tmp_path / place / "circle", "data": tmp_path / "data", "patients": 14, "size": 32}
        return Namespace(**named, fraction=fraction, wrong=0.0)

    base = data_manifest(options("a", 0.3))
    truth = read_truth(base.parent / "truth.csv")
    first = make_start(options("a", 0.3), base, grades, truth, 0)
    kept = first.manifest.read_text(encoding="utf-8")
    second = make_start(options("b", 0.9), base, grades, truth, 0)
    assert second.labeled > first.labeled
    assert first.manifest.read_text(encoding="utf-8") == kept
    assert make_start(options("a", 0.3), base, grades, truth, 0).manifest == first.manifest
