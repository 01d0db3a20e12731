import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn import metrics as reference

from knee import metrics
from knee.grades import decide, load_grade_set

from .simulated import simulated

KL = load_grade_set("kl")


def square(size: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((size, size))
    mask[rows, columns] = 1
    return mask


class TestThresholdIou:
    def test_four_images_two_right_two_wrong_is_one_half(self) -> None:
        mask = np.stack([square(16, slice(4, 8), slice(2, 14))] * 4)
        attention = mask.copy()
        attention[2:] = square(16, slice(10, 14), slice(2, 14))
        assert metrics.threshold_iou(attention, mask) == 0.5

    def test_counts_images_not_pixels(self) -> None:
        # One huge image located, one tiny one missed: pooled pixels would say nearly 1.
        mask = np.stack([np.ones((32, 32)), square(32, slice(0, 1), slice(0, 1))])
        attention = np.stack([np.ones((32, 32)), square(32, slice(9, 10), slice(9, 10))])
        assert metrics.threshold_iou(attention, mask) == 0.5

    def test_iou_between_thresholds(self) -> None:
        mask = np.stack([square(10, slice(0, 10), slice(0, 10))])
        attention = np.stack([square(10, slice(0, 10), slice(0, 4))])  # IoU 0.4 exceeds 0.1, 0.2, 0.3 and not 0.4
        assert metrics.per_image_iou(attention, mask).tolist() == [0.4]
        assert metrics.threshold_iou(attention, mask) == pytest.approx(3 / 7)

    @pytest.mark.parametrize("tenths", range(1, 8))
    def test_an_iou_equal_to_a_threshold_does_not_exceed_it(self, tenths: int) -> None:
        mask, attention = np.ones((1, 1, 10)), np.zeros((1, 1, 10))
        attention[..., :tenths] = 1
        assert metrics.threshold_iou(attention, mask) == pytest.approx((tenths - 1) / 7)

    def test_empty_masks_are_left_out(self) -> None:
        full, nothing = np.ones((4, 4)), np.zeros((4, 4))
        assert metrics.threshold_iou(np.stack([full, full]), np.stack([full, nothing])) == 1
        assert math.isnan(metrics.threshold_iou(np.stack([full]), np.stack([nothing])))

    def test_empty_attention_counts_as_missed(self) -> None:
        assert metrics.threshold_iou(np.zeros((1, 4, 4)), np.ones((1, 4, 4))) == 0

    def test_level_is_exceeded_strictly(self) -> None:
        assert metrics.threshold_iou(np.full((1, 4, 4), 0.5), np.ones((1, 4, 4))) == 0
        assert metrics.threshold_iou(np.full((1, 4, 4), 0.5), np.ones((1, 4, 4)), level=0.4) == 1

    def test_tensors_of_any_precision_and_gradient(self) -> None:
        attention = torch.rand(3, 8, 8, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.rand(3, 8, 8) > 0.5
        plain = metrics.threshold_iou(attention.detach().float().numpy(), mask.numpy())
        assert metrics.threshold_iou(attention, mask) == plain

    def test_against_a_plain_loop(self) -> None:
        rng = np.random.default_rng(0)
        attention, mask = rng.random((20, 6, 7)), rng.random((20, 6, 7)) > rng.random((20, 1, 1))
        total = 0.0
        for threshold in metrics.THRESHOLDS:
            hits = 0
            for image, true in zip(attention, mask, strict=True):
                looked = {tuple(place) for place in np.argwhere(image > 0.5)}
                there = {tuple(place) for place in np.argwhere(true)}
                hits += len(looked & there) / len(looked | there) > threshold
            total += hits / 20
        assert metrics.threshold_iou(attention, mask) == pytest.approx(total / 7)

    @pytest.mark.parametrize(
        ("attention", "mask", "message"),
        [
            (np.zeros((2, 4, 4)), np.zeros((2, 4, 5)), "one size"),
            (np.zeros((4, 4)), np.zeros((4, 4)), "first axis"),
            (np.full((1, 2, 2), 1.5), np.ones((1, 2, 2)), r"attention must be in \[0, 1\]"),
            (np.zeros((1, 2, 2)), np.full((1, 2, 2), 255), "mask must be"),
            (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2)), "NaN"),
        ],
    )
    def test_refuses(self, attention: np.ndarray, mask: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            metrics.threshold_iou(attention, mask)

    def test_refuses_thresholds_outside_the_range(self) -> None:
        with pytest.raises(ValueError, match="thresholds"):
            metrics.threshold_iou(np.ones((1, 2, 2)), np.ones((1, 2, 2)), thresholds=())


class TestKappaAndAdjacent:
    def test_by_hand(self) -> None:
        # Observed (0 + 0 + 0 + 16) / 4 = 4; by chance over all 16 pairs 104 / 16 = 6.5.
        assert metrics.quadratic_kappa([0, 2, 4, 4], [0, 2, 4, 0]) == pytest.approx(1 - 4 / 6.5)

    @pytest.mark.parametrize("seed", range(5))
    def test_against_scikit_learn(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        grades, predicted = rng.integers(0, 5, 60), rng.integers(0, 5, 60)
        expected = reference.cohen_kappa_score(grades, predicted, weights="quadratic", labels=range(5))
        assert metrics.quadratic_kappa(grades, predicted) == pytest.approx(expected)

    def test_an_absent_grade_still_is_a_distance(self) -> None:
        # Without its labels argument scikit-learn would count 0 to 4 as 0 to 2 here; ours needs none.
        grades, predicted = [0, 1, 4, 4, 0], [0, 4, 4, 1, 1]
        expected = reference.cohen_kappa_score(grades, predicted, weights="quadratic", labels=range(5))
        assert metrics.quadratic_kappa(grades, predicted) == pytest.approx(expected)
        assert expected != pytest.approx(reference.cohen_kappa_score(grades, predicted, weights="quadratic"))

    def test_limits(self) -> None:
        assert metrics.quadratic_kappa([0, 1, 2], [0, 1, 2]) == 1
        assert metrics.quadratic_kappa([0, 4], [4, 0]) == -1
        assert metrics.quadratic_kappa([0, 4], [2, 2]) == 0
        assert math.isnan(metrics.quadratic_kappa([3, 3], [3, 3]))

    def test_adjacent(self) -> None:
        assert metrics.adjacent_accuracy([0, 1, 2, 3], [1, 3, 2, 2]) == 0.75

    @pytest.mark.parametrize(
        ("grades", "predicted", "message"),
        [
            ([0, 1], [0], "2 grades but 1"),
            ([], [], "N ≥ 1"),
            ([0.5], [1], "whole numbers"),
            ([np.nan], [1.0], "whole numbers"),
            ([-1], [1], "0 or more"),
            (["2"], [1], "whole numbers"),
        ],
    )
    def test_refuses(self, grades: list, predicted: list, message: str) -> None:
        for metric in (metrics.quadratic_kappa, metrics.adjacent_accuracy):
            with pytest.raises(ValueError, match=message):
                metric(grades, predicted)


class TestCalibration:
    def test_overconfident(self) -> None:
        probabilities = np.tile([0.9, 0.1], (10, 1))
        assert metrics.expected_calibration_error(probabilities, [0] * 6 + [1] * 4) == pytest.approx(0.3)

    def test_underconfident(self) -> None:
        probabilities = np.tile([0.6, 0.4], (10, 1))
        assert metrics.expected_calibration_error(probabilities, [0] * 10) == pytest.approx(0.4)

    def test_calibrated(self) -> None:
        probabilities = np.tile([0.8, 0.2], (10, 1))
        assert metrics.expected_calibration_error(probabilities, [0] * 8 + [1] * 2) == pytest.approx(0)

    def test_two_bins_do_not_cancel(self) -> None:
        # Half the cases 0.2 too sure, half 0.2 not sure enough: the error is 0.2, not 0.
        probabilities = np.repeat([[0.95, 0.05], [0.55, 0.45]], 20, axis=0)
        grades = [0] * 15 + [1] * 5 + [0] * 15 + [1] * 5
        assert metrics.expected_calibration_error(probabilities, grades) == pytest.approx(0.2)

    def test_one_bin_lets_them_cancel(self) -> None:
        probabilities = np.repeat([[0.95, 0.05], [0.55, 0.45]], 20, axis=0)
        grades = [0] * 15 + [1] * 5 + [0] * 15 + [1] * 5
        assert metrics.expected_calibration_error(probabilities, grades, bins=1) == pytest.approx(0)

    def test_bins_hold_their_upper_edge(self) -> None:
        found = metrics.reliability([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]], [0, 0, 1], bins=4)
        assert found.cases.tolist() == [0, 1, 1, 1]
        assert found.accuracy[1:].tolist() == [1, 0, 1]
        assert np.isnan(found.confidence[0])

    def test_against_a_plain_loop(self) -> None:
        probabilities, grades = simulated(np.random.default_rng(3), 400)
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == grades
        total = 0.0
        for number in range(15):
            inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
            if inside.any():
                total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert metrics.expected_calibration_error(probabilities, grades) == pytest.approx(total)

    @pytest.mark.parametrize(
        ("probabilities", "grades", "message"),
        [
            ([[0.5, 0.6]], [0], "sum to 1"),
            ([[2.0, -1.0]], [0], "must be in"),
            ([[np.nan, 1.0]], [0], "NaN"),
            ([[1.0, 0.0]], [2], "no column"),
            ([[1.0, 0.0]], [0, 1], "1 rows"),
            ([[1.0]], [0], "K ≥ 2"),
        ],
    )
    def test_refuses(self, probabilities: list, grades: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            metrics.expected_calibration_error(probabilities, grades)


class TestGradingMetrics:
    @pytest.mark.parametrize("seed", range(4))
    def test_against_scikit_learn(self, seed: int) -> None:
        probabilities, grades = simulated(np.random.default_rng(seed), 150)
        predicted = decide(probabilities, KL.decision)
        found = metrics.grading_metrics(probabilities, grades, KL)
        precision, recall, f1, _ = reference.precision_recall_fscore_support(grades, predicted, zero_division=0)
        for grade in range(5):
            assert found[f"precision_{grade}"] == pytest.approx(precision[grade])
            assert found[f"recall_{grade}"] == pytest.approx(recall[grade])
            assert found[f"f1_{grade}"] == pytest.approx(f1[grade])
            assert found[f"auc_{grade}"] == pytest.approx(
                reference.roc_auc_score(grades == grade, probabilities[:, grade])
            )
        assert found["precision"] == pytest.approx(precision.mean())
        assert found["recall"] == pytest.approx(reference.balanced_accuracy_score(grades, predicted))
        assert found["macro_f1"] == pytest.approx(reference.f1_score(grades, predicted, average="macro"))
        assert found["auc"] == pytest.approx(reference.roc_auc_score(grades, probabilities, multi_class="ovr"))
        assert found["accuracy"] == pytest.approx(reference.accuracy_score(grades, predicted))
        assert found["mae"] == pytest.approx(reference.mean_absolute_error(grades, predicted))
        assert found["kappa"] == pytest.approx(metrics.quadratic_kappa(grades, predicted))
        assert found["adjacent"] == pytest.approx(metrics.adjacent_accuracy(grades, predicted))
        assert found["ece"] == pytest.approx(metrics.expected_calibration_error(probabilities, grades))

    def test_auc_counts_ties_one_half(self) -> None:
        rng = np.random.default_rng(0)
        first = rng.integers(0, 5, 80) / 4
        grades = rng.integers(0, 2, 80)
        ranks = rankdata(1 - first)
        positives = int(grades.sum())
        expected = (ranks[grades == 1].sum() - positives * (positives + 1) / 2) / (positives * (80 - positives))
        probabilities = np.zeros((80, 5))
        probabilities[:, 0], probabilities[:, 1] = first, 1 - first
        assert metrics.grading_metrics(probabilities, grades, KL)["auc_1"] == pytest.approx(expected)

    def test_absent_grades_are_left_out_and_never_zero(self) -> None:
        probabilities = np.eye(5)[[0, 0, 1, 4]]
        found = metrics.grading_metrics(probabilities, [0, 0, 1, 1], KL)
        assert found["recall"] == 0.75
        assert found["recall_0"] == 1 and found["recall_1"] == 0.5
        assert found["precision_1"] == 1 and found["f1_1"] == pytest.approx(2 / 3)
        assert all(math.isnan(found[f"{name}_4"]) for name in ("recall", "precision", "f1", "auc"))
        assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
        assert found["auc"] == pytest.approx((1 + 0.75) / 2)

    def test_a_grade_never_given_has_f1_zero(self) -> None:
        found = metrics.grading_metrics(np.eye(5)[[0, 0]], [0, 3], KL)
        assert found["precision_3"] == found["f1_3"] == found["recall_3"] == 0
        assert found["macro_f1"] == pytest.approx(1 / 3)

    def test_only_one_grade_has_no_auc(self) -> None:
        found = metrics.grading_metrics(np.eye(5)[[2, 2]], [2, 2], KL)
        assert math.isnan(found["auc"]) and math.isnan(found["kappa"])
        assert found["accuracy"] == 1 and found["ece"] == 0

    def test_refuses_another_grade_set(self) -> None:
        with pytest.raises(ValueError, match="3 grades; kl has 5"):
            metrics.grading_metrics(np.eye(3), [0, 1, 2], KL)

    def test_weights_count_cases(self) -> None:
        rng = np.random.default_rng(1)
        probabilities, grades = simulated(rng, 40)
        probabilities = probabilities.round(1) + (1 - probabilities.round(1).sum(axis=1, keepdims=True)) / 5
        probabilities = np.clip(probabilities, 0, None) / np.clip(probabilities, 0, None).sum(axis=1, keepdims=True)
        weights = rng.integers(0, 4, (3, 40)).astype(float)
        predicted = decide(probabilities, KL.decision)
        found = metrics.weighted_metrics(probabilities, predicted, grades, weights, disease_from=KL.disease_from)
        for row, weight in enumerate(weights):
            drawn = np.repeat(np.arange(40), weight.astype(int))
            for name, value in metrics.grading_metrics(probabilities[drawn], grades[drawn], KL).items():
                assert found[name][row] == pytest.approx(value, nan_ok=True), name


def test_perfect_and_opposite_over_a_grid() -> None:
    for cases, seed in itertools.product((5, 50), range(3)):
        grades = np.random.default_rng(seed).permutation(np.arange(cases) % 5)
        found = metrics.grading_metrics(np.eye(5)[grades], grades, KL)
        best = {
            "accuracy": 1,
            "recall": 1,
            "precision": 1,
            "macro_f1": 1,
            "auc": 1,
            "kappa": 1,
            "adjacent": 1,
            "mae": 0,
            "ece": 0,
        }
        assert {name: found[name] for name in best} == best


class TestDisease:
    def test_all_against_scikit_learn_and_a_plain_count(self) -> None:
        rng = np.random.default_rng(5)
        probabilities, grades = simulated(rng, 300)
        found = metrics.grading_metrics(probabilities, grades, KL)
        diseased, score = grades >= 2, probabilities[:, 2:].sum(axis=1)
        assert found["auc_disease"] == pytest.approx(reference.roc_auc_score(diseased, score))
        for threshold in metrics.OPERATING_POINTS:
            called = score >= threshold
            true, false = (called & diseased).sum(), (called & ~diseased).sum()
            assert found[f"sensitivity_{threshold:g}"] == pytest.approx(true / diseased.sum())
            assert found[f"specificity_{threshold:g}"] == pytest.approx(1 - false / (~diseased).sum())
            benefit = true / 300 - false / 300 * threshold / (1 - threshold)
            assert found[f"net_benefit_{threshold:g}"] == pytest.approx(benefit)

    def test_perfect_and_useless_predictions(self) -> None:
        grades = np.array([0, 1, 2, 3, 4, 0, 0, 1])
        perfect = metrics.grading_metrics(np.eye(5)[grades], grades, KL)
        assert {perfect[f"{name}_0.5"] for name in ("sensitivity", "specificity")} == {1.0}
        assert perfect["net_benefit_0.5"] == pytest.approx(3 / 8)  # the share of diseased knees: the upper bound
        uniform = metrics.grading_metrics(np.full((8, 5), 0.2), grades, KL)  # P(KL >= 2) = 0.6 of each
        assert [uniform[f"sensitivity_{t}"] for t in (0.5, 0.6, 0.7)] == [1, 1, 0]
        assert [uniform[f"specificity_{t}"] for t in (0.5, 0.6, 0.7)] == [0, 0, 1]
        assert uniform["net_benefit_0.7"] == 0
        assert uniform["auc_disease"] == 0.5

    def test_sensitivity_falls_and_specificity_rises_with_the_threshold(self) -> None:
        probabilities, grades = simulated(np.random.default_rng(6), 200)
        found = metrics.grading_metrics(probabilities, grades, KL)
        sensitivity, specificity = (
            [found[f"{name}_{t:g}"] for t in metrics.OPERATING_POINTS] for name in ("sensitivity", "specificity")
        )
        assert sensitivity == sorted(sensitivity, reverse=True)
        assert specificity == sorted(specificity)

    def test_undefined_without_diseased_or_without_healthy_knees(self) -> None:
        healthy = metrics.grading_metrics(np.full((2, 5), 0.2), [0, 1], KL)
        assert math.isnan(healthy["auc_disease"])
        assert math.isnan(healthy["sensitivity_0.5"])
        assert healthy["specificity_0.5"] == 0
        assert math.isnan(metrics.grading_metrics(np.full((2, 5), 0.2), [2, 4], KL)["specificity_0.5"])

    def test_the_grade_set_says_where_disease_begins(self) -> None:
        probabilities = np.array([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0]])
        cartilage = metrics.grading_metrics(probabilities, [0, 1], load_grade_set("cartilage"))
        assert cartilage["sensitivity_0.5"] == cartilage["specificity_0.5"] == 1


def test_balanced_accuracy_is_the_mean_recall_and_notices_a_grade_that_is_never_predicted() -> None:
    grades = np.repeat(np.arange(5), 20)
    without_1 = np.where(grades == 1, np.where(np.arange(100) % 2, 0, 2), grades)
    found = metrics.grading_metrics(np.eye(5)[without_1], grades, KL)
    assert found["balanced_accuracy"] == found["recall"] == pytest.approx(0.8)
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(grades, without_1))
    assert found["kappa"] > 0.9
    assert found["kappa_balanced"] == pytest.approx((found["kappa"] + 0.8) / 2)
