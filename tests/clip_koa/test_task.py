"""A text head in the application: trained in the mean teacher, frozen text, run folders that load anywhere, refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from clip_koa.config import ClipConfig
from clip_koa.model import ClipGrader
from dcmt.cli import main
from dcmt.config import GraderConfig, ModelConfig
from dcmt.schedules import teacher_decay
from dcmt.teacher import make_teacher, update_buffers, update_teacher
from dcmt.train import build_grader, build_task, train_grader
from dcmt.trained.loaded import load_run
from knee.data.prepare import TrainingBatches, load_knee_data
from knee.engine.fit import make_optimizer
from knee.engine.options import read_config
from knee.engine.run import RunFolder, create_run
from knee.errors import UserError
from knee.grades import load_grade_set

CONFIGS = Path(__file__).parents[2] / "configs"
CLIP = {"image": "timm:resnet10t", "text": "small", "pretrained": False, "embed_dim": 16, "stage": 2, "stride": 8}
FLIPS = {"loss.symmetry": True, "loss.flip_consistency": 10.0}
CARTILAGE = load_grade_set("cartilage")

MakeConfig = Callable[..., GraderConfig]


@pytest.fixture
def clip_config(grader_config: MakeConfig) -> MakeConfig:
    """A tiny text head in the mean teacher with all terms, with changes by dotted name."""

    def build(**changes: object) -> GraderConfig:
        clip = CLIP | {
            name.removeprefix("clip."): changes.pop(name) for name in list(changes) if name.startswith("clip.")
        }
        return grader_config(**{"model": {"head": "text"}, "clip": clip, "fit.steps": 3, **FLIPS, **changes})

    return build


def train(config: GraderConfig, path: Path) -> RunFolder:
    run = create_run(path, config, kind="grader")
    train_grader(config, run, resume=False)
    return run


def test_it_trains_and_every_command_works_on_the_run(clip_config, tmp_path, phantom, capsys):
    run = train(clip_config(), tmp_path / "run")
    metrics = pd.read_csv(run.path / "metrics.csv")
    terms = set(metrics["name"][metrics["name"].str.startswith("loss/")])
    names = {"grade", "attention", "probability_consistency", "attention_consistency", "total"}
    assert terms == {f"loss/{name}" for name in names | {"flip_consistency", "flip_consistency_unlabeled"}}
    assert metrics["value"].notna().all()
    assert main(["evaluate", str(run.path)]) == 0
    assert "mean of grades" in capsys.readouterr().out
    written = json.loads(run.metrics("test").read_text(encoding="utf-8"))
    assert written["teacher"]["metrics"]["flip_changed"]["value"] is not None
    assert {"flip_divergence", "student_flip_changed"} <= set(pd.read_csv(run.predictions("test")).columns)
    assert main(["attention", str(run.path), "--cases", "2"]) == 0
    assert len(list((run.path / "attention_test").glob("*.png"))) == 3
    image = next((phantom.parent / "images").iterdir())
    assert main(["predict", str(run.path), str(image), "--out", str(tmp_path / "predicted"), "--no-overlays"]) == 0
    state = json.loads(next(run.path.glob("checkpoints/*/state.json")).read_text(encoding="utf-8"))
    assert list(state["prompts"]) == list(CARTILAGE.names)


def test_evaluation_without_flips_says_nothing_of_them(trained_run, tmp_path):
    run = shutil.copytree(trained_run.path, tmp_path / "run")
    assert main(["evaluate", str(run), "--no-flip"]) == 0
    assert "flip_changed" not in json.loads((run / "metrics_test.json").read_text())["teacher"]["metrics"]


def test_a_frozen_text_tower_is_run_once_and_not_optimised(clip_config):
    config = clip_config(**{"clip.train_text": False})
    data = load_knee_data(config.data)
    task = build_task(config, data, steps=3)
    assert isinstance(task.student, ClipGrader)
    passes = dict.fromkeys(task.networks, 0)
    for name, network in task.networks.items():
        network.text_tower.encoder.register_forward_hook(
            lambda *_, name=name: passes.__setitem__(name, passes[name] + 1)
        )
    device = torch.device("cpu")
    rows = {"rows": data.labeled, "unlabeled": data.unlabeled, "dilation": 0.0, "seed": 0, "device": device}
    batches = TrainingBatches(data, config.data, config.views, **rows, channels_last=False).from_batch(0)
    optimizer = make_optimizer(task, config.optimizer, device)
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not optimised & {id(parameter) for parameter in task.student.text_tower.parameters()}
    before = task.student.text_tower().clone()
    for step in range(4):
        optimizer.zero_grad()
        task.losses(next(batches), step).total.backward()
        optimizer.step()
        task.after_update(step)
    assert passes == {"student": 1, "teacher": 1}
    for network in task.networks.values():
        assert torch.equal(network.text_tower(), before)


@pytest.mark.parametrize("policy", ["ema", "copy"])
def test_a_teacher_that_only_averages_keeps_its_text_finite(clip_config, policy):
    """A causal text tower masks by −inf in a buffer: averaging it would make every answer NaN."""
    student = build_grader(clip_config(), CARTILAGE)
    teacher = make_teacher(student)
    for step in range(3):
        decay = teacher_decay(step, 0.9)
        update_teacher(teacher, student, decay)
        update_buffers(teacher, student, decay, policy=policy)
    assert torch.isfinite(teacher(torch.rand(2, 1, 48, 48)).logits).all()


def test_precision_trials_do_not_blank_a_frozen_text(clip_config, tmp_path):
    run = train(clip_config(**{"clip.train_text": False, "fit.precision": "auto"}), tmp_path / "run")
    values = pd.read_csv(run.path / "metrics.csv").set_index("name")["value"]
    # Blank texts make all similarities 0: a grade loss of exactly ln 3 and flip terms of exactly 0.
    assert (values["loss/flip_consistency"] > 0).all()


def test_a_run_loads_without_its_prompts_and_keeps_their_phrases(clip_config, tmp_path):
    prompts = tmp_path / "mine.yaml"
    phrases = {0: ["normal cartilage"], 1: ["thin cartilage", "a partial defect"], 2: ["bare bone"]}
    prompts.write_text(yaml.safe_dump({"grade_set": "cartilage", "grades": phrases}))
    run = train(clip_config(**{"clip.prompts": str(prompts)}), tmp_path / "run")
    before = load_run(run.path, checkpoint="last", device="cpu")
    prompts.unlink()
    loaded = load_run(run.path, checkpoint="last", device="cpu")
    images = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(loaded.networks["teacher"](images).logits, before.networks["teacher"](images).logits)
    assert len(loaded.networks["teacher"].text_tower.tokens) == 4
    resumed = RunFolder(run.path)
    train_grader(dataclasses.replace(loaded.config), resumed, resume=True)


def test_a_run_starts_from_another_of_the_same_phrases_alone(clip_config, tmp_path):
    """Their phrases come with the weights: others in the config would be recorded and never used."""
    first = train(clip_config(), tmp_path / "first")
    same = train(clip_config(**{"model.start": str(first.path)}), tmp_path / "same")
    found = [run.checkpoints.latest()[0].state["prompts"] for run in (first, same)]
    assert found[0] == found[1]
    prompts = tmp_path / "mine.yaml"
    phrases = {0: ["normal cartilage"], 1: ["thin cartilage"], 2: ["bare bone"]}
    prompts.write_text(yaml.safe_dump({"grade_set": "cartilage", "grades": phrases}))
    config = clip_config(**{"model.start": str(first.path), "clip.prompts": str(prompts)})
    with pytest.raises(UserError, match=r"model\.start: .* was trained on other phrases .* use its clip\.prompts"):
        train(config, tmp_path / "other")


def test_the_training_sets_mean_and_deviation_normalise(clip_config):
    grader = build_grader(clip_config(), CARTILAGE, mean=0.3, std=0.2)
    assert grader.mean.flatten().tolist() == pytest.approx([0.3] * 3)
    assert build_grader(clip_config(), CARTILAGE).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"image": "timm:resnt18"}, "did you mean resnet18"),
        ({"image": "ViT-B-61"}, "did you mean ViT-B-16"),
        ({"prompts": "nowhere.yaml"}, "nowhere.yaml"),
        ({"image": "timm:resnet10t", "stride": 5}, "clip.stride"),
    ],
)
def test_mistakes_end_with_2_and_one_message(clip_config, tmp_path, capsys, changes, fragment):
    config = dataclasses.asdict(clip_config())
    config["runs"] = str(tmp_path / "runs")
    config["clip"] |= changes
    config["data"]["percentiles"] = list(config["data"]["percentiles"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert fragment in message
    assert message.startswith("dcmt: ")
    assert len(message.splitlines()) == 1


def test_a_prompts_file_with_faults_lists_all_of_them(clip_config, tmp_path, capsys):
    prompts = tmp_path / "bad.yaml"
    prompts.write_text("grade_set: cartilage\ngrades: {0: [normal], 1: [], 7: [worse]}\n")
    path = tmp_path / "config.yaml"
    config = dataclasses.asdict(clip_config(**{"clip.prompts": str(prompts)}))
    config["runs"], config["data"]["percentiles"] = str(tmp_path / "runs"), [0.5, 99.5]
    path.write_text(yaml.safe_dump(config))
    assert main(["train", "--config", str(path)]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in ("bad.yaml", "grade 1", "grade 2", "7"))


def test_configs_refuse_what_would_be_ignored():
    with pytest.raises(ValueError, match="set under clip"):
        GraderConfig(model=ModelConfig(head="text", backbone="resnet50"))
    with pytest.raises(ValueError, match="head is linear"):
        GraderConfig(clip=ClipConfig(image="ViT-L-14"))


def test_flip_consistency_gives_unlabeled_images_a_use(grader_config):
    without = {"loss.probability_consistency": 0.0, "loss.attention_consistency": 0.0}
    with pytest.raises(Exception, match="would have no effect"):
        grader_config(**without)
    assert grader_config(**without, **{"loss.flip_consistency": 1.0}).data.unlabeled_per_batch > 0
    with pytest.raises(Exception, match="flip_consistency is -1"):
        grader_config(**{"loss.flip_consistency": -1.0})


def test_the_paper_configs_state_the_papers_numbers():
    paper, plain = (
        read_config(GraderConfig, ["--config", str(CONFIGS / f"{name}.yaml")], program="test")
        for name in ("clip_koa_paper", "clip_paper")
    )
    assert paper.clip.image == "ViT-B-16-quickgelu"
    assert (paper.clip.pretrained, paper.clip.train_image, paper.clip.train_text) == (True, True, True)
    optimizer = paper.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 1e-5, 1e-6)
    assert optimizer.schedule == "onecycle"
    assert (paper.data.labeled_per_batch, paper.data.unlabeled_per_batch, paper.data.image_size) == (64, 0, 224)
    assert (paper.loss.symmetry, paper.loss.flip_consistency) == (True, 10.0)
    flipless = dataclasses.replace(paper, loss=dataclasses.replace(paper.loss, symmetry=False, flip_consistency=0.0))
    assert flipless == plain


def test_the_small_pair_differs_in_the_flip_terms_alone():
    koa, plain = (
        read_config(GraderConfig, ["--config", str(CONFIGS / f"{name}.yaml")], program="test")
        for name in ("clip_koa_small", "clip_small")
    )
    assert dataclasses.replace(koa, loss=plain.loss) == plain
    assert dataclasses.replace(koa.loss, symmetry=False, flip_consistency=0.0) == plain.loss
