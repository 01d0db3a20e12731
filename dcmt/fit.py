"""One loop for every task: precision, accumulation, schedules, validation, checkpoints, resuming, logging.

A task (``knee.task.Task``) brings networks, losses and validation; the loop knows nothing else of it. Batches come from a
loader whose order is a function of (seed, epoch, batch), so a run resumes exactly where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dcmt.checkpoint import Checkpoint, Checkpoints, flatten_optimizer, restore_optimizer
from dcmt.config import FitConfig, OptimizerConfig
from dcmt.device import autocast, memory_gib, out_of_memory
from dcmt.schedules import learning_rate_factor
from dcmt.stop import stop_on_signal
from dcmt.tracking import Tracker
from dcmt.window import Window
from knee.datasets import worker_death
from knee.errors import UserError
from knee.predictions import NotFinite
from knee.task import Task

Say = Callable[[str], None]


class Batches(Protocol):
    """Training batches, on the device, from any point of the run."""

    per_epoch: int

    def from_batch(self, batch: int) -> Iterator[Any]:
        """Batches without end, from batch number ``batch`` of the run on."""
        ...


@dataclass
class Progress:
    """Where a run is; saved with every checkpoint."""

    step: int = 0
    best_value: float | None = None
    best_step: int = -1
    validations_since_best: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0

    def note(self, value: float) -> bool:
        """Take a validation's value in; whether it is the best so far. NaN says that there was nothing to validate on."""
        if math.isnan(value):
            return False
        if self.best_value is None or value > self.best_value:
            self.best_value, self.best_step, self.validations_since_best = value, self.step, 0
            return True
        self.validations_since_best += 1
        return False


@dataclass
class Fit:
    """A run of the loop: ``Fit(...).run()``. All that changes is in ``progress``, the task and the optimiser."""

    task: Task
    batches: Batches
    config: FitConfig
    optimizer_config: OptimizerConfig
    device: torch.device
    precision: str
    tracker: Tracker
    checkpoints: Checkpoints
    steps: int
    say: Say
    state: Mapping[str, Any] = field(default_factory=dict)
    """Written into every checkpoint's state.json (versions, hashes)."""
    resume_command: str = ""

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.optimizer = make_optimizer(self.task, self.optimizer_config, self.device)
        self.scaler = torch.amp.grad_scaler.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._buffers = BufferKeeper(self.task.networks.values())
        self._window = Window()
        self._warned: set[str] = set()
        self._taught: set[str] = set()
        self._stop = False

    def run(self) -> Progress:
        """Train to the last step, to early stopping, or until SIGTERM or SIGINT asks to stop after the step under way."""
        self.tracker.open()
        self.checkpoints.begin()
        every = self.config.validate_every or max(1, self.steps // 10)
        last_saved = time.monotonic()
        self._window.started = last_saved
        batches = self.batches.from_batch(self.progress.step * self.config.accumulation)
        bar = tqdm(total=self.steps, initial=self.progress.step, desc="train", unit="step", disable=None)
        with stop_on_signal(self._ask_to_stop), bar:
            while self.progress.step < self.steps and not self._stop and not self._out_of_patience:
                logged = self.advance(batches)
                bar.update()
                if logged:
                    bar.set_postfix_str(f"loss {logged.get('loss/total', math.nan):.3f}", refresh=False)
                if self.progress.step % every == 0 or self.progress.step == self.steps:
                    self._guarded_validation()
                    last_saved = time.monotonic()
                elif time.monotonic() - last_saved > 60 * self.config.checkpoint_minutes or self._stop:
                    self.save()
                    last_saved = time.monotonic()
        self.tracker.flush()
        if self._out_of_patience:
            self.say(f"no better {self.task.best_metric} in {self.config.patience} validations: stopped early")
        elif self.was_stopped:
            self.say(f"stopped at step {self.progress.step} of {self.steps}, saved; go on with: {self.resume_command}")
        return self.progress

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended it before its last step."""
        return self._stop and self.progress.step < self.steps

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.progress.validations_since_best

    def advance(self, batches: Iterator[Any]) -> dict[str, float]:
        """One optimiser step, and where a log row is due its values; else nothing."""
        started = time.monotonic()
        self._guarded_step(batches)
        self.progress.seconds += time.monotonic() - started
        due = self.progress.step % self.config.log_every == 0 or self.progress.step == self.steps
        return self._log() if due else {}

    def _guarded_step(self, batches: Iterator[Any]) -> None:
        try:
            self._step(batches)
        except RuntimeError as error:
            if out_of_memory(error):
                raise UserError(
                    f"out of memory on {self.device} in step {self.progress.step}; lower data.labeled_per_batch and "
                    "data.unlabeled_per_batch (fit.accumulation makes up for it), data.image_size, or take a smaller network"
                ) from error
            # torch notices a dead worker wherever the main process happens to be.
            raise worker_death(error) or error from error

    def _step(self, batches: Iterator[Any]) -> None:
        """One optimiser step: ``accumulation`` batches, or nothing at all where a loss or gradient is not finite."""
        step = self.progress.step
        factor = learning_rate_factor(
            step, self.steps, schedule=self.optimizer_config.schedule, warmup=self.optimizer_config.warmup_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimizer_config.learning_rate * factor
        self._buffers.keep()
        self.optimizer.zero_grad(set_to_none=True)
        images = 0
        for _ in range(self.config.accumulation):
            batch = next(batches)
            with autocast(self.device, self.precision):
                losses = self.task.losses(batch, step)
            self.scaler.scale(losses.total / self.config.accumulation).backward()  # type: ignore[no-untyped-call]
            self._window.add(losses)
            images += len(batch[0])
        self.scaler.unscale_(self.optimizer)
        norm = _clip(self.task, self.optimizer_config.clip_norm)
        # A step is good or bad as a whole: weights, teacher and statistics move together or not at all.
        if torch.isfinite(norm + losses.total.detach()).item():
            self.progress.bad_in_a_row = 0
            self._window.keep()
            self.scaler.step(self.optimizer)
            self._window.schedules = {"lr": self.optimizer.param_groups[0]["lr"], **self.task.after_update(step)}
        else:
            self._skip()
        self.scaler.update()
        self._window.images += images
        self.progress.step += 1

    def _skip(self) -> None:
        self._buffers.restore()
        terms = self._window.terms_under_way()
        self._window.drop()
        self.progress.bad_steps += 1
        self.progress.bad_in_a_row += 1
        if self.progress.bad_in_a_row >= self.config.most_bad_steps:
            # Of several batches a step, the first that shows what is wrong.
            shown = next((one for one in terms if not all(value.isfinite() for value in one.values())), terms[-1])
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in shown.items())
            raise UserError(
                f"{self.progress.bad_in_a_row} steps in a row had a loss or gradient that is not finite (the last at step "
                f"{self.progress.step}: {values}); {self._out_of_divergence}"
            )

    @property
    def _out_of_divergence(self) -> str:
        ways = "lower optimizer.learning_rate, or set optimizer.clip_norm (1.0, say)"
        return ways if self.precision == "fp32" else f"{ways}, or fit.precision to fp32"

    def _log(self) -> dict[str, float]:
        self._warn_of_idle_terms()
        window, self._window = self._window, Window()
        values = window.means()
        values |= {f"schedule/{name}": value for name, value in window.schedules.items()}
        values["system/images_per_s"] = window.images / max(time.monotonic() - window.started, 1e-9)
        values["system/memory_gib"] = memory_gib(self.device)
        values["system/skipped_steps"] = float(self.progress.bad_steps)
        self.tracker.scalars(values, self.progress.step)
        return values

    def _warn_of_idle_terms(self) -> None:
        """After an epoch: a window of a few batches may have none of the images that a term is about."""
        idle = self._window.idle_terms()
        self._taught |= self._window.terms() - idle
        seen = self.progress.step * self.config.accumulation
        if seen < self.batches.per_epoch and self.progress.step < self.steps:
            return
        for name in idle - self._taught - self._warned:
            self._warned.add(name)
            self.say(
                f"warning: loss/{name} has a weight above 0 but was exactly 0, or without a gradient, in {self._window.count} "
                f"batches up to step {self.progress.step}: it teaches nothing"
            )

    def _guarded_validation(self) -> None:
        try:
            self._validate()
        except NotFinite as error:
            raise UserError(
                f"training has diverged: in the validation after step {self.progress.step} answers are not finite; "
                + self._out_of_divergence
            ) from error
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"out of memory on {self.device} in the validation after step {self.progress.step}; end what else takes memory "
                "there and go on by --resume, or start a new run with a smaller data.image_size or network"
            ) from error

    def _validate(self) -> None:
        for network in self.task.networks.values():
            network.eval()
        with torch.no_grad():
            values = dict(self.task.validate(self.progress.step))
        for network in self.task.networks.values():
            network.train()
        self.tracker.scalars(values, self.progress.step)
        best = self.progress.note(values.get(self.task.best_metric, math.nan))
        self.save()
        if best:
            self._mark_best()
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in sorted(values) if name.endswith(_SHOWN))
        self.say(f"step {self.progress.step:>6}  {shown}{'  best' if best else ''}")
        self._window.started = time.monotonic()
        self._window.images = 0

    def save(self) -> None:
        """Write a checkpoint of everything that resuming needs."""
        tensors, groups = flatten_optimizer(self.optimizer)
        random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            random["mps"] = torch.mps.get_rng_state()
        state = {
            **self.state,
            "progress": vars(self.progress),
            "steps": self.steps,
            "precision": self.precision,
            "optimizer_groups": groups,
            "scaler": self.scaler.state_dict(),
        }
        self.tracker.flush()
        rest = {"optimizer": tensors, "random": random, "window": self._window.tensors()}
        self.checkpoints.save(self.progress.step, self.task.networks, rest, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint: networks, optimiser, scaler, random state, progress and losses not yet logged.

        Raises:
            UserError: the data changed since (a run that goes on with other data is neither the old nor a new one), or
                the checkpoint is not of this run.
        """
        self._refuse_changed_data(checkpoint)
        for name, network in self.task.networks.items():
            checkpoint.load_network(name, network)
        try:
            restore_optimizer(self.optimizer, checkpoint.tensors("optimizer"), checkpoint.state["optimizer_groups"])
            self.scaler.load_state_dict(checkpoint.state["scaler"])
            random = checkpoint.tensors("random")
            torch.set_rng_state(random["cpu"])
            if "cuda" in random and self.device.type == "cuda":
                torch.cuda.set_rng_state(random["cuda"], self.device)
            if "mps" in random and self.device.type == "mps":
                torch.mps.set_rng_state(random["mps"])
            self._window.load(checkpoint.tensors("window"), self.device)
            self.progress = Progress(**checkpoint.state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{checkpoint.folder} does not fit this run ({type(error).__name__}: {error}); "
                "was it written by another version?"
            ) from error
        self.checkpoints.forget_after(checkpoint.step)
        # A kill may have come between a checkpoint and the note that it is the best.
        self._mark_best()

    def _mark_best(self) -> None:
        if self.progress.best_value is not None:
            self.checkpoints.mark_best(self.progress.best_step, self.task.best_metric, self.progress.best_value)

    def _refuse_changed_data(self, checkpoint: Checkpoint) -> None:
        changed = [
            name.removesuffix("_sha256")
            for name, value in self.state.items()
            if name.endswith("_sha256") and checkpoint.state.get(name, value) != value
        ]
        if changed:
            raise UserError(
                f"{checkpoint.folder} was trained on other data: {' and '.join(changed)} changed since; put them back, or "
                "start a new run under another --name"
            )

    def _ask_to_stop(self) -> None:
        self._stop = True


_SHOWN = ("macro_f1", "kappa", "tiou", "dice")


class BufferKeeper:
    """Keeps a copy of all buffers, so that a step that is not finite leaves no trace in the statistics."""

    def __init__(self, networks: Any) -> None:
        self._buffers = [buffer for network in networks for buffer in network.buffers()]
        self._kept = [buffer.detach().clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Copy the buffers as they are now."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def restore(self) -> None:
        """Bring the buffers back to what they were at ``keep``, in place."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)


def make_optimizer(task: Task, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of a config, fused where torch can."""
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError(
            "nothing of the network is trained: image tower, text tower and scale are all fixed; set clip.train_image, "
            "clip.train_text or clip.scale (dcmt zeroshot grades without training)"
        )
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    options["fused"] = device.type in ("cpu", "cuda") or None
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **options)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, **options)


def _clip(task: Task, clip_norm: float) -> Tensor:
    """The norm of the gradient, before clipping it to ``clip_norm`` (0: not clipped)."""
    if clip_norm:
        return nn.utils.clip_grad_norm_(task.parameters(), clip_norm)
    return nn.utils.get_total_norm([parameter.grad for parameter in task.parameters() if parameter.grad is not None])
