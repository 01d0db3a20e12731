import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from knee import metrics
from knee.attention import attention_mask
from knee.errors import UserError
from knee.evaluate import best_grid_iou, difference, iterate_attention, predict, predictions_table, report
from knee.grades import load_grade_set
from knee.masks import dilate
from knee.phantom.mr import draw_mr_slice
from knee.predictions import Predictions, jensen_shannon
from knee.task import Grading

CARTILAGE = load_grade_set("cartilage")


class Brightness(nn.Module):
    """Grades by where the brightest third is (left 0, middle 1, right 2) and shows the image itself as evidence."""

    def forward(self, images: Tensor) -> Grading:
        thirds = images.mean((1, 2)).unflatten(1, (3, -1)).mean(2)
        evidence = nn.functional.avg_pool2d(images, 2)
        return Grading(20 * thirds, evidence.repeat(1, 3, 1, 1) * torch.tensor([1.0, 2.0, 3.0])[:, None, None])


def bars() -> tuple[Tensor, np.ndarray]:
    """Six images (12 px) with a bright bar in third 0, 0, 1, 2, 2, and nowhere; and their bars as masks."""
    images = torch.zeros(6, 1, 12, 12, dtype=torch.uint8)
    for number, third in enumerate((0, 0, 1, 2, 2)):
        images[number, 0, 4:8, 4 * third : 4 * third + 4] = 255
    return images, (images[:, 0] > 0).numpy().astype(np.uint8)


def batches(images: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [
        (images[start : start + size], torch.arange(len(images))[start : start + size])
        for start in range(0, len(images), size)
    ]


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


class TestPredict:
    def test_grades_and_numbers(self) -> None:
        images, masks = bars()
        found = predict(Brightness(), batches(images), masks=masks)
        assert found.rows.tolist() == list(range(6))
        assert found.predicted.tolist() == [0, 0, 1, 2, 2, 0]
        assert found.probabilities.dtype == np.float32
        assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-6)
        assert found.entropy[5] == pytest.approx(math.log(3))
        assert found.map_maximum.tolist() == [1, 1, 2, 3, 3, 0]
        assert found.empty.tolist() == [False] * 5 + [True]
        assert (found.iou[:5] > 0.6).all() and math.isnan(found.iou[5])

    def test_uint8_and_float_images_are_the_same(self) -> None:
        images, _ = bars()
        one, other = predict(Brightness(), batches(images)), predict(Brightness(), batches(images.float() / 255, 3))
        assert (one.probabilities == other.probabilities).all()

    def test_masks_are_taken_by_row_and_only_where_they_are(self) -> None:
        images, masks = bars()
        shuffled = [(images[[4, 2]], torch.tensor([4, 2])), (images[[0]], np.array([0]))]
        has_mask = np.array([True, False, True, False, False, False])
        found = predict(Brightness(), shuffled, masks=masks, has_mask=has_mask)
        assert found.rows.tolist() == [4, 2, 0]
        assert math.isnan(found.iou[0]) and (found.iou[1:] > 0.6).all()

    def test_iou_is_that_of_the_predicted_grade(self) -> None:
        class TwoMaps(nn.Module):
            def forward(self, images: Tensor) -> Grading:
                maps = torch.zeros(len(images), 3, 4, 4)
                maps[:, 1, :, :2] = 1
                maps[:, 2, :, 2:] = 1
                return Grading(torch.tensor([[0.0, 5.0, 1.0]]).repeat(len(images), 1), maps)

        masks = np.zeros((1, 4, 4), dtype=np.uint8)
        masks[:, :, :2] = 1
        assert predict(TwoMaps(), [(torch.zeros(1, 1, 4, 4), [0])], masks=masks).iou.tolist() == [1]

    def test_flip_of_a_symmetric_and_of_an_asymmetric_image(self) -> None:
        images, _ = bars()
        found = predict(Brightness(), batches(images), flip=True)
        assert found.flip_changed is not None and found.flip_divergence is not None
        assert found.flip_changed.tolist() == [True, True, False, True, True, False]
        assert found.flip_divergence[[2, 5]] == pytest.approx(0, abs=1e-7)
        assert (found.flip_divergence[:2] > 0.5).all() and (found.flip_divergence <= math.log(2) + 1e-9).all()
        assert predict(Brightness(), batches(images)).flip_changed is None

    def test_a_network_is_graded_in_eval_mode_and_given_back_as_it_was(self) -> None:
        class Normalised(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trained, self.frozen = nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval()
                self.seen: list[bool] = []

            def forward(self, images: Tensor) -> Grading:
                self.seen.append(self.trained.training)
                return Brightness()(self.frozen(self.trained(images)))

        network = Normalised()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        predict(network, batches(bars()[0]))
        assert network.seen == [False, False]
        assert network.trained.training and not network.frozen.training
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_no_graph_is_kept(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, 1), Brightness())
        batch = next(iter(iterate_attention(network, batches(bars()[0]))))
        assert not batch.attention.requires_grad and not batch.probabilities.requires_grad
        assert torch.is_grad_enabled()

    def test_iterates_with_the_maps_of_the_attention_module(self) -> None:
        images, _ = bars()
        network = Brightness()
        for batch in iterate_attention(network, batches(images), sharpness=30, threshold=0.3):
            maps = network(batch.images).class_maps
            expected = attention_mask(maps, batch.predicted, (12, 12), sharpness=30, threshold=0.3)
            assert torch.equal(batch.mask, expected)
            assert batch.attention.min() >= 0 and batch.attention.max() <= 1

    def test_half_precision_gives_single_precision_probabilities(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 1, 1), Brightness())
        one = predict(network, batches(bars()[0]), precision=torch.bfloat16)
        other = predict(network, batches(bars()[0]))
        assert one.probabilities.dtype == np.float32
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.05)

    def test_refuses_what_is_not_finite_naming_the_row(self) -> None:
        images = bars()[0].float()
        images[3] = torch.nan
        with pytest.raises(UserError, match=r"1 of 2 images \(first: row 3\).*earlier checkpoint"):
            predict(Brightness(), batches(images, 2))

    def test_refuses_nothing_and_other_shapes(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            predict(Brightness(), [])
        with pytest.raises(ValueError, match=r"must be \(B, 1, S, S\)"):
            predict(Brightness(), [(torch.zeros(2, 3, 12, 12), [0, 1])])
        with pytest.raises(ValueError, match="one size"):
            predict(Brightness(), batches(bars()[0]), masks=np.ones((6, 9, 9)))

    def test_jensen_shannon_against_scipy_and_its_bounds(self) -> None:
        first, second = torch.rand(2, 30, 5, dtype=torch.float64).softmax(-1)
        expected = jensenshannon(first.numpy(), second.numpy(), axis=1) ** 2
        assert jensen_shannon(first, second).numpy() == pytest.approx(expected)
        assert jensen_shannon(first, second).tolist() == pytest.approx(jensen_shannon(second, first).tolist())
        one_hot = torch.eye(2)
        assert jensen_shannon(one_hot, one_hot.flip(0)).tolist() == pytest.approx([math.log(2)] * 2)
        assert jensen_shannon(one_hot, one_hot).tolist() == [0, 0]


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

    def test_the_phantoms_bands_are_within_reach_of_a_grid_of_12(self) -> None:
        slices = (draw_mr_slice(seed=0, patient=patient, index=3) for patient in range(12))
        best = best_grid_iou(np.stack([dilate(drawn.mask) for drawn in slices]), (12, 12))
        print(f"best IoU of a 12 × 12 grid on dilated phantom masks: mean {best.mean():.3f}, worst {best.min():.3f}")  # noqa: T201
        assert best.mean() >= 0.9 and metrics.exceeded_share(best).mean() == 1

    def test_climbing_beats_averaging(self) -> None:
        masks = self.band(64)[None]
        assert best_grid_iou(masks, (8, 8))[0] > best_grid_iou(masks, (8, 8), steps=0)[0] + 0.05

    def test_a_grid_of_the_image_size_reaches_all(self) -> None:
        assert best_grid_iou(self.band(24)[None], (24, 24))[0] == 1

    def test_refuses_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"must be \(N, H, W\)"):
            best_grid_iou(self.band(16), (4, 4))
