import json

import numpy as np
import pandas as pd
import pytest

from knee import metrics
from knee.evaluation.predictions import Predictions
from knee.evaluation.report import best_grid_iou, difference, predictions_table, report
from knee.grades import load_grade_set
from knee.nn.temperature import tempered

CARTILAGE = load_grade_set("cartilage")


def made(probabilities: np.ndarray, **changes: np.ndarray) -> Predictions:
    count = len(probabilities)
    values = {
        "rows": np.arange(count),
        "probabilities": probabilities.astype(np.float32),
        "predicted": probabilities.argmax(axis=1),
        "entropy": np.zeros(count),
        "map_maximum": np.ones(count),
        "empty": np.zeros(count, dtype=bool),
        "iou": np.full(count, np.nan),
    }
    return Predictions(**(values | changes))


class TestReport:
    def test_values_are_those_of_the_metrics(self) -> None:
        rng = np.random.default_rng(0)
        probabilities = rng.dirichlet(np.ones(3), 60)
        grades, patients = rng.integers(0, 3, 60), rng.integers(0, 25, 60)
        iou = rng.random(60)
        found = report(made(probabilities, iou=iou), grades, patients, CARTILAGE, samples=50, seed=1)
        single = probabilities.astype(np.float32)
        for name, value in metrics.grading_metrics(single, grades, CARTILAGE).items():
            assert found["metrics"][name]["value"] == pytest.approx(value, abs=1e-6)
        assert found["metrics"]["tiou"]["value"] == pytest.approx(metrics.exceeded_share(iou).mean(), abs=1e-6)
        for entry in found["metrics"].values():
            assert entry["low"] <= entry["value"] <= entry["high"] or entry["high"] - entry["low"] < 0.2
        assert found["cases"] == found["graded"] == found["with_mask"] == 60
        assert found["patients"] == len(set(patients))
        assert np.array(found["confusion"]).sum(axis=1).tolist() == np.bincount(grades, minlength=3).tolist()

    def test_is_plain_json_with_none_for_the_undefined(self) -> None:
        found = report(made(np.eye(3)[[0, 0]]), [0, 0], ["a", "b"], CARTILAGE, samples=5)
        assert found["metrics"]["auc"] == found["metrics"]["tiou"] == {"value": None, "low": None, "high": None}
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert "flip_changed" not in found["metrics"]

    def test_ungraded_cases_count_for_the_attention_alone(self) -> None:
        iou = np.array([1.0, 0.0, 1.0, 1.0])
        predictions = made(np.eye(3)[[0, 1, 2, 2]], iou=iou)
        for missing in (None, np.nan, pd.NA):
            found = report(predictions, [0, 1, missing, missing], range(4), CARTILAGE, samples=5)
            assert found["graded"] == 2 and found["cases"] == 4
            assert found["metrics"]["accuracy"]["value"] == 1
            assert found["metrics"]["tiou"]["value"] == 0.75
        grades = pd.Series([0, 1, None, None], dtype="Int64", index=[7, 3, 1, 0])
        assert report(predictions, grades, range(4), CARTILAGE, samples=5)["graded"] == 2

    def test_cases_of_one_patient_tell_nothing_of_the_spread(self) -> None:
        """Whatever the other patients of the split, who have no grade or no mask, or another grade."""
        predictions = made(np.eye(3)[[0, 1, 2, 0]], iou=np.array([0.9, 0.1, np.nan, np.nan]))
        found = report(predictions, [0, 0, None, None], ["a", "a", "b", "c"], CARTILAGE, samples=50)
        for name in ("accuracy", "kappa", "tiou", "recall_0"):
            assert found["metrics"][name]["value"] is not None
            assert (found["metrics"][name]["low"], found["metrics"][name]["high"]) == (None, None)
        assert found["metrics"]["entropy"]["low"] == 0
        assert (found["patients"], found["graded_patients"]) == (3, 1)
        found = report(made(np.eye(3)[[0, 1, 1, 1]]), [0, 1, 1, 0], ["a", "b", "c", "a"], CARTILAGE, samples=50)
        assert found["metrics"]["recall_0"]["low"] is None, "grade 0 is of one patient"
        assert found["metrics"]["recall_1"]["low"] == 1
        assert found["metrics"]["accuracy"]["low"] is not None

    def test_no_grade_at_all(self) -> None:
        found = report(made(np.eye(3), iou=np.ones(3)), [None] * 3, range(3), CARTILAGE, samples=5)
        assert "accuracy" not in found["metrics"] and found["metrics"]["tiou"]["value"] == 1

    def test_patients_are_not_named(self) -> None:
        found = report(made(np.eye(3)), [0, 1, 2], ["Ada", "Ben", "Cy"], CARTILAGE, samples=5)
        assert "Ada" not in json.dumps(found)

    def test_the_same_seed_gives_the_same_report(self) -> None:
        predictions = made(np.random.default_rng(0).dirichlet(np.ones(3), 30))
        grades = np.arange(30) % 3
        assert report(predictions, grades, range(30), CARTILAGE, samples=20, seed=4) == report(
            predictions, grades, range(30), CARTILAGE, samples=20, seed=4
        )

    @pytest.mark.parametrize(
        ("grades", "message"),
        [([0, 1], "2 grades for 3"), ([0, 1, 3], "grade 3 has no column"), ([0, 1, "KL2"], "whole numbers")],
    )
    def test_refuses(self, grades: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            report(made(np.eye(3)), grades, range(3), CARTILAGE)


class TestDifference:
    def test_paired_is_narrower_than_each_and_zero_for_equal(self) -> None:
        rng = np.random.default_rng(0)
        grades = rng.integers(0, 3, 150)
        right, wrong = np.eye(3)[grades], np.eye(3)[(grades + 1) % 3]
        first_right = rng.random(150) < 0.7
        first = made(np.where(first_right[:, None], right, wrong))
        second = made(np.where((first_right | (rng.random(150) < 0.2))[:, None], right, wrong))
        found = difference(first, second, grades, range(150), CARTILAGE, samples=200, seed=0)["accuracy"]
        alone = report(first, grades, range(150), CARTILAGE, samples=200)["metrics"]["accuracy"]
        assert found["low"] > 0 and found["high"] - found["low"] < alone["high"] - alone["low"]
        same = difference(first, first, grades, range(150), CARTILAGE, samples=20)
        assert all(entry["value"] in (0, None) and entry["high"] in (0, None) for entry in same.values())

    def test_images_of_a_patient_are_not_independent_evidence(self) -> None:
        """Ten images of a patient that are all alike tell no more than one: the interval is √10 wider than of 500 patients."""
        rng = np.random.default_rng(3)
        grades = np.repeat(rng.integers(0, 3, 50), 10)
        wrong = np.eye(3)[(grades + 1) % 3]
        better = np.where(np.repeat(rng.random(50) < 0.5, 10)[:, None], np.eye(3)[grades], wrong)

        def width(patients: np.ndarray) -> float:
            found = difference(made(wrong), made(better), grades, patients, CARTILAGE, samples=2000)["accuracy"]
            assert found["low"] is not None
            assert found["high"] is not None
            return found["high"] - found["low"]

        ratio = width(np.repeat(np.arange(50), 10)) / width(np.arange(500))
        assert ratio == pytest.approx(np.sqrt(10), rel=0.1)

    def test_refuses_other_rows(self) -> None:
        with pytest.raises(ValueError, match="same cases"):
            difference(made(np.eye(3)), made(np.eye(3), rows=np.array([0, 2, 1])), [0, 1, 2], range(3), CARTILAGE)


class TestTable:
    def test_one_row_a_case_with_student_beside_teacher(self) -> None:
        teacher = made(np.array([[0.8, 0.2, 0.0], [0.1, 0.9, 0.0]]))
        student = made(np.array([[0.2, 0.8, 0.0], [0.1, 0.9, 0.0]]))
        table = predictions_table(teacher, cases=["a1", "b2"], grades=[0, None], others={"student": student})
        assert table.columns[:6].tolist() == ["case", "grade", "predicted", "p_0", "p_1", "p_2"]
        assert table["grade"].isna().tolist() == [False, True]
        assert table["student_agrees"].tolist() == [False, True]
        assert table["student_distance"][1] == 0 and table["student_distance"][0] > 0.1
        assert "image" not in table and table["student_p_1"].tolist() == pytest.approx([0.8, 0.9])

    def test_files_only_where_given_and_flip_where_measured(self) -> None:
        flipped = made(np.eye(3), flip_divergence=np.zeros(3), flip_changed=np.array([True, False, False]))
        table = predictions_table(flipped, cases=["a", "b", "c"], images=["1.png", "2.png", "3.png"])
        assert table["image"].tolist() == ["1.png", "2.png", "3.png"] and table["flip_changed"].tolist()[0]

    def test_refuses_other_rows(self) -> None:
        other = made(np.eye(3), rows=np.array([5, 6, 7]))
        with pytest.raises(ValueError, match="predictions of student"):
            predictions_table(made(np.eye(3)), cases=["a", "b", "c"], others={"student": other})


class TestBestGrid:
    def band(self, size: int) -> np.ndarray:
        rows, columns = np.mgrid[:size, :size] / size
        radius = np.hypot(rows - 0.62, columns - 0.5)
        return ((radius > 0.23) & (radius < 0.36) & (rows < 0.65)).astype(np.uint8)

    def test_a_band_on_a_fine_and_on_a_coarse_grid(self) -> None:
        masks = np.stack([self.band(96), np.zeros((96, 96), dtype=np.uint8)])
        fine, coarse = best_grid_iou(masks, (12, 12)), best_grid_iou(masks, (6, 6))
        assert 0.9 < fine[0] <= 1 and coarse[0] < 0.8
        assert np.isnan(fine[1])

    def test_climbing_beats_averaging(self) -> None:
        masks = self.band(64)[None]
        assert best_grid_iou(masks, (8, 8))[0] > best_grid_iou(masks, (8, 8), steps=0)[0] + 0.05

    def test_a_grid_of_the_image_size_reaches_all(self) -> None:
        assert best_grid_iou(self.band(24)[None], (24, 24))[0] == 1

    def test_refuses_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"must be \(N, H, W\)"):
            best_grid_iou(self.band(16), (4, 4))


class TestCalibrationError:
    """Resampling makes the ECE larger, so its interval is moved back by the estimated bias."""

    @staticmethod
    def cases(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Predictions that are a little too certain: logits 1.15 times those that the grades are drawn from."""
        logits = rng.normal(0, 1.2, (count, 3))
        true, given = (np.exp(factor * logits) for factor in (1, 1.15))
        true, given = true / true.sum(1, keepdims=True), given / given.sum(1, keepdims=True)
        return given, (rng.random((count, 1)) > true.cumsum(1)).sum(1).clip(max=2)

    def test_the_interval_contains_the_estimate(self) -> None:
        rng, outside = np.random.default_rng(0), 0
        for _ in range(30):
            given, grades = self.cases(400, rng)
            found = report(made(given), grades, range(400), CARTILAGE, samples=200, temperature=1.3)["metrics"]
            for name in ("ece", "ece_uncalibrated"):
                assert 0 <= found[name]["low"] <= found[name]["value"] <= found[name]["high"]
            weights = rng.multinomial(400, np.full(400, 1 / 400), 200).astype(float)
            plain = metrics.weighted_calibration_error(given, grades, weights)
            outside += np.quantile(plain, 0.025) > metrics.expected_calibration_error(given, grades)
        assert outside > 0  # what a plain percentile interval does

    def test_the_interval_covers_the_expected_error(self) -> None:
        rng, trials = np.random.default_rng(1), 120
        drawn = [self.cases(400, rng) for _ in range(600)]
        expected = np.mean([metrics.expected_calibration_error(*one) for one in drawn])
        covered = 0
        for given, grades in drawn[:trials]:
            entry = report(made(given), grades, range(400), CARTILAGE, samples=150)["metrics"]["ece"]
            covered += entry["low"] <= expected <= entry["high"]
        assert 0.88 <= covered / trials <= 1

    def test_the_error_before_is_that_of_the_uncalibrated_probabilities(self) -> None:
        given, grades = self.cases(200, np.random.default_rng(2))
        found = report(made(tempered(given, 1.7)), grades, range(200), CARTILAGE, samples=5, temperature=1.7)
        before = metrics.expected_calibration_error(given, grades)
        assert found["metrics"]["ece_uncalibrated"]["value"] == pytest.approx(before, abs=1e-4)
        assert found["temperature"] == 1.7
        assert "ece_uncalibrated" not in report(made(given), grades, range(200), CARTILAGE, samples=5)["metrics"]
