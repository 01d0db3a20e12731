"""Grade sets: what is shipped, what is parsed, what is refused."""

import numpy as np
import pytest
import torch

from knee.errors import Faults, UserError
from knee.grades import BEST_METRICS, GradeSet, decide, grade_set_yaml, load_grade_set
from knee.metrics import grading_metrics

SHIPPED = [("kl", 5, "kappa"), ("cartilage", 3, "macro_f1")]


@pytest.mark.parametrize(("name", "count", "metric"), SHIPPED)
def test_shipped_sets(name, count, metric):
    grades = load_grade_set(name)
    assert (grades.name, grades.count, grades.best_metric) == (name, count, metric)
    assert len(grades.descriptions) == count
    assert all(grades.descriptions)


@pytest.mark.parametrize(
    ("text", "grade"), [("2", 2), ("2.0", 2), (" 4 ", 4), ("0", 0), ("", None), ("  ", None), ("03", 3)]
)
def test_parsed(text, grade):
    assert load_grade_set("kl").parse(text) == grade


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("KL2", "write 2"),
        ("grade 3", "write 3"),
        ("2: 2", "write a whole number from 0 to 4"),
        ("moderate", "write 3"),
        ("5", "write a whole number"),
        ("-1", "write a whole number"),
        ("1.5", "write a whole number"),
        ("nan", "write a whole number"),
        ("²", "write a whole number"),
        ("9" * 500, "write a whole number"),
    ],
)
def test_refused_with_a_way_out(text, way_out):
    with pytest.raises(UserError, match="is not 0–4 or empty; " + way_out):
        load_grade_set("kl").parse(text)


def test_own_file(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "name: own\ntitle: t\nbest_metric: kappa\ngrades:\n- {name: a, description: d}\n- {name: b, description: e}\n"
    )
    assert load_grade_set(file) == GradeSet("own", "t", ("a", "b"), ("d", "e"), "kappa")


@pytest.mark.parametrize("metric", ["f1", "ece", "mae", "precision", "val_teacher/kappa", ""])
def test_metric_that_no_model_is_chosen_by_is_refused(metric, tmp_path):
    file = tmp_path / "own.yaml"
    text = "name: own\ntitle: t\nbest_metric: {!r}\ngrades:\n- {{name: a, description: d}}\n- {{name: b, description: e}}\n"
    file.write_text(text.format(metric))
    with pytest.raises(Faults, match=rf"'best_metric' is '{metric}', .* one of accuracy, recall, macro_f1, auc, kappa"):
        load_grade_set(file)
    for known in BEST_METRICS:
        file.write_text(text.format(known))
        assert load_grade_set(file).best_metric == known


@pytest.mark.parametrize("name", ["", "  "])
def test_a_set_without_a_name_is_refused(name, tmp_path):
    file = tmp_path / "own.yaml"
    grades = "grades:\n- {name: a, description: d}\n- {name: b, description: e}\n"
    file.write_text(f"name: {name!r}\ntitle: t\nbest_metric: kappa\n{grades}")
    with pytest.raises(Faults, match=r"own\.yaml: not a grade set.*\n  'name' is empty"):
        load_grade_set(file)


def test_metrics_to_choose_by_are_computed_and_best_at_1():
    grades = load_grade_set("cartilage")
    found = grading_metrics(np.eye(3), [0, 1, 2], grades)
    assert [found[name] for name in BEST_METRICS] == [1.0] * len(BEST_METRICS)


def test_all_faults_of_a_file_at_once(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("name: 3\ncolour: red\nbest_metric: kappa\ngrades:\n- {name: no, description: d}\n- {name: b}\n")
    with pytest.raises(Faults) as caught:
        load_grade_set(file)
    text = str(caught.value)
    for part in (
        "'title' is missing",
        "'colour' is unknown",
        "'name' is not text",
        "grade 0: name and",
        "grade 1 does not",
    ):
        assert part in text


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "grades: 3\nname: a\ntitle: b\nbest_metric: c"])
def test_not_a_grade_set(tmp_path, content):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_grade_set(file)


def test_a_grade_set_written_is_the_one_read(tmp_path):
    odd = GradeSet("own: set", "Ünusual", ("no", "1", "c # d"), ("", "two\nlines", "'quoted'"), "auc")
    for grade_set in (load_grade_set("kl"), load_grade_set("cartilage"), odd):
        (tmp_path / "set.yaml").write_text(grade_set_yaml(grade_set), encoding="utf-8")
        assert load_grade_set(tmp_path / "set.yaml") == grade_set


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'klx' is unknown; write one of cartilage, kl"):
        load_grade_set("klx")


def test_disease_begins_at_grade_2_of_kl_and_at_grade_1_by_default(tmp_path):
    assert (load_grade_set("kl").disease_from, load_grade_set("cartilage").disease_from) == (2, 1)
    file = tmp_path / "kl.yaml"
    file.write_text(grade_set_yaml(load_grade_set("kl")))
    assert load_grade_set(file) == load_grade_set("kl")


@pytest.mark.parametrize("first", [0, 2, -1, 1.5, "'1'", "true", "null"])
def test_a_first_grade_of_disease_outside_the_set_is_refused(tmp_path, first):
    file = tmp_path / "own.yaml"
    grades = "grades:\n- {name: a, description: d}\n- {name: b, description: e}\n"
    file.write_text(f"name: own\ntitle: t\nbest_metric: kappa\ndisease_from: {first}\n{grades}")
    with pytest.raises(Faults, match=r"'disease_from' is .*; write a grade from 1 to 1"):
        load_grade_set(file)


class TestDecide:
    def test_by_hand(self):
        shares = np.array([[0.45, 0.15, 0.40], [0.5, 0.0, 0.5], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]])
        assert decide(shares, "likeliest").tolist() == [0, 0, 2, 2]
        assert decide(shares, "median").tolist() == [1, 0, 2, 2]

    @pytest.mark.parametrize("count", [2, 3, 5, 8])
    def test_the_median_has_the_least_expected_error(self, count):
        shares = np.random.default_rng(count).dirichlet(np.full(count, 0.5), size=300)
        errors = shares @ np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        assert (decide(shares, "median") == errors.argmin(1)).all()

    def test_tensors_in_single_precision_agree_with_arrays(self):
        shares = torch.rand(500, 5).softmax(1)
        for decision in ("likeliest", "median"):
            assert (decide(shares, decision).numpy() == decide(shares.double().numpy(), decision)).all()

    def test_certainty_and_rounding(self):
        """All mass on one grade calls it, and exact halves in float32 call the lower one."""
        assert decide(np.eye(5), "median").tolist() == [0, 1, 2, 3, 4]
        assert decide(np.array([[0.5 - 3e-8, 0.0, 0.5]], np.float32), "median").tolist() == [0]

    def test_two_grades_are_called_alike(self):
        first = np.linspace(0.01, 0.99, 99)[:, None]
        shares = np.hstack([first, 1 - first])
        assert (decide(shares, "median") == decide(shares, "likeliest")).all()


def test_decision_of_a_file(tmp_path):
    text = grade_set_yaml(load_grade_set("kl"))
    (tmp_path / "own.yaml").write_text(text)
    assert load_grade_set(tmp_path / "own.yaml") == load_grade_set("kl")
    assert (load_grade_set("kl").decision, load_grade_set("cartilage").decision) == ("median", "likeliest")
    (tmp_path / "own.yaml").write_text(text.replace("decision: median", "decision: mean"))
    with pytest.raises(Faults, match="'decision' is 'mean'; write one of likeliest, median"):
        load_grade_set(tmp_path / "own.yaml")
