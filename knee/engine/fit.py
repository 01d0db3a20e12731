"""The training loop of all tasks: precision, accumulation, schedules, validation, checkpoints, resuming, logging.

A task (``knee.task.Task``) provides networks, losses and validation. The order of the batches is a function of (seed, epoch,
batch), so a run resumes exactly where it stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from knee.engine.checkpoint import Checkpoint, Checkpoints
from knee.engine.config import FitConfig, OptimizerConfig
from knee.engine.device import autocast, memory_gib
from knee.engine.guards import BufferKeeper, IdleTerms, diverged, guarded_step, guarded_validation, stop_on_signal
from knee.engine.schedules import learning_rate_factor
from knee.engine.state import LoopState, Progress, refuse_changed_data
from knee.engine.tracking import Tracker, Window
from knee.errors import UserError
from knee.io.termination import Terminated
from knee.nn import processes
from knee.task import Task

log = logging.getLogger(__name__)
_SHOWN = ("macro_f1", "kappa", "tiou", "dice", "mrr")


class Batches(Protocol):
    """Training batches on the device, starting at any point of the run."""

    per_epoch: int

    def from_batch(self, batch: int) -> Iterator[Any]:
        """An endless sequence of batches, starting with batch number ``batch`` of the run."""
        ...


@dataclass
class Fit:
    """The training loop: ``Fit(...).run()``. Its changing state is in ``progress``, the task and ``LoopState``."""

    task: Task
    batches: Batches
    config: FitConfig
    optimizer_config: OptimizerConfig
    device: torch.device
    precision: str
    tracker: Tracker
    checkpoints: Checkpoints
    steps: int
    state: Mapping[str, Any] = field(default_factory=dict)
    """Written into every checkpoint's state.json (versions, hashes)."""
    resume_command: str = ""

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.optimizer = make_optimizer(self.task, self.optimizer_config, self.device)
        self.scaler = torch.amp.grad_scaler.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._loop_state = LoopState(self.optimizer, self.scaler, self.device)
        self._buffers = BufferKeeper(self.task.networks.values())
        self._window = Window()
        self._idle = IdleTerms()
        self._asked = self._stop = self._is_waiting = self._is_whole = False

    def run(self) -> Progress:
        """Train to the last step, to early stopping, or until SIGTERM or SIGINT requests a stop after the current step.

        SIGTERM also ends a wait for a batch and a validation, after a few seconds; the validation is repeated on resuming.
        """
        self.tracker.open()
        if processes.is_first():
            self.checkpoints.begin()
        with stop_on_signal(self._request_stop, lambda: self._is_waiting):
            try:
                self._take_steps()
            except Terminated:
                if not self._is_whole:
                    raise
                self.save()
        self.tracker.flush()
        if self._out_of_patience:
            log.info(f"no better {self.task.best_metric} in {self.config.patience} validations: stopped early")
        elif self.was_stopped:
            log.info(
                f"stopped at step {self.progress.step} of {self.steps}, saved; continue with: {self.resume_command}"
            )
        return self.progress

    def _take_steps(self) -> None:
        every = self.config.validate_every or max(1, self.steps // 10)
        last_saved = self._window.started = time.monotonic()
        batches = self.batches.from_batch(self.progress.step * self.config.accumulation)
        if self.progress.validation_due:
            self.validate()
        with tqdm(total=self.steps, initial=self.progress.step, desc="train", unit="step", disable=None) as bar:
            while self.progress.step < self.steps and not self._stop and not self._out_of_patience:
                self.step(batches)
                bar.update()
                if self.progress.step % self.config.log_every == 0 or self.progress.step == self.steps:
                    bar.set_postfix_str(f"loss {self.log().get('loss/total', math.nan):.3f}", refresh=False)
                if self.progress.step % every == 0 or self.progress.step == self.steps:
                    self.validate()
                    last_saved = time.monotonic()
                elif time.monotonic() - last_saved > 60 * self.config.checkpoint_minutes or self._stop:
                    self.save()
                    last_saved = time.monotonic()

    @contextlib.contextmanager
    def _waiting(self, *, whole: bool) -> Iterator[None]:
        """Around a wait that SIGTERM may end; ``whole``: the state of the run is then that between two steps."""
        self._is_waiting, self._is_whole = True, whole
        try:
            yield
        finally:
            self._is_waiting = False

    @property
    def was_stopped(self) -> bool:
        """Whether a signal stopped the run before its last step or in the last validation."""
        return self._stop and (self.progress.step < self.steps or bool(self.progress.validation_due))

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.progress.validations_since_best

    def step(self, batches: Iterator[Any]) -> None:
        """One optimizer step on ``accumulation`` batches, which is skipped if a loss or gradient is not finite."""
        started, step = time.monotonic(), self.progress.step
        self._set_learning_rate(step)
        self._buffers.keep()
        self.optimizer.zero_grad(set_to_none=True)
        with guarded_step(self.progress, self.device):
            for number in range(self.config.accumulation):
                with self._waiting(whole=number == 0):
                    batch = next(batches)
                with autocast(self.device, self.precision):
                    losses = self.task.losses(batch, step)
                self.scaler.scale(losses.total / self.config.accumulation).backward()  # type: ignore[no-untyped-call]
                self._window.add(losses)
                self._window.images += len(batch[0])
            self.scaler.unscale_(self.optimizer)
            processes.average_gradients(self.task.parameters())
            norm = _clip(self.task, self.optimizer_config.clip_norm)
            # A step is taken or skipped as a whole: weights, teacher and statistics are updated together or not at all, in all
            # processes, which also stop after the same step.
            bad, self._stop = self._agree(~torch.isfinite(norm + losses.total.detach()))
            if not bad:
                processes.average_buffers(self.task.networks.values())
                self._take(step)
            else:
                self._skip()
            self.scaler.update()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - started

    def _agree(self, bad: Tensor) -> tuple[bool, bool]:
        """Whether the step is bad, and whether to stop: in any process."""
        if processes.count() == 1:
            return bool(bad.item()), self._asked
        found = processes.any_of(torch.stack([bad, torch.tensor(self._asked, device=bad.device)]))
        return bool(found[0].item()), bool(found[1].item())

    def _set_learning_rate(self, step: int) -> None:
        config = self.optimizer_config
        factor = learning_rate_factor(step, self.steps, schedule=config.schedule, warmup=config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor

    def _take(self, step: int) -> None:
        self.progress.bad_in_a_row = 0
        self._window.keep()
        self.scaler.step(self.optimizer)
        self._window.schedules = {"lr": self.optimizer.param_groups[0]["lr"], **self.task.after_update(step)}

    def _skip(self) -> None:
        self._buffers.restore()
        terms = self._window.terms_under_way()
        self._window.drop()
        self.progress.bad_steps += 1
        self.progress.bad_in_a_row += 1
        if self.progress.bad_in_a_row >= self.config.most_bad_steps:
            raise diverged(self.progress, terms, self.precision)

    def log(self) -> dict[str, float]:
        """Record the mean losses since the last call and start a new window; returns the recorded values."""
        seen_all = self.progress.step * self.config.accumulation >= self.batches.per_epoch
        last = self.progress.step >= self.steps
        self._idle.check(self._window, step=self.progress.step, epoch_done=seen_all or last)
        window, self._window = self._window, Window()
        values = processes.average(window.means(), self.device)
        values |= {f"schedule/{name}": value for name, value in window.schedules.items()}
        values["system/images_per_s"] = processes.count() * window.images / max(time.monotonic() - window.started, 1e-9)
        values["system/memory_gib"] = memory_gib(self.device)
        values["system/skipped_steps"] = float(self.progress.bad_steps)
        self.tracker.scalars(values, self.progress.step)
        return values

    def validate(self) -> None:
        """Validate, record the metrics, save a checkpoint, and mark it if it is the best."""
        networks = self.task.networks.values()
        with guarded_validation(self.progress, self.device, self.precision):
            for network in networks:
                network.eval()
            self.progress.validation_due = 1
            processes.refuse_drifted(self.task.networks)
            with torch.no_grad(), self._waiting(whole=True):
                found = dict(self.task.validate(self.progress.step))
                values = processes.first_decides(lambda: found)
            for network in networks:
                network.train()
            self.tracker.scalars(values, self.progress.step)
            self.progress.validation_due = 0
            best = self.progress.note(values.get(self.task.best_metric, math.nan))
            self.save()
            if best:
                self._mark_best()
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in sorted(values) if name.endswith(_SHOWN))
        log.info(f"step {self.progress.step:>6}  {shown}{'  best' if best else ''}")
        self._window.started = time.monotonic()
        self._window.images = 0

    def save(self) -> None:
        """Write a checkpoint with everything needed to resume, in the first of several processes."""
        if not processes.is_first():
            return
        tensors, plain = self._loop_state.collect(self.progress)
        state = {**self.state, "steps": self.steps, "precision": self.precision, **plain}
        self.tracker.flush()
        rest = {**tensors, "window": self._window.tensors()}
        self.checkpoints.save(self.progress.step, self.task.networks, rest, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint: networks, optimizer, scaler, random state, progress and losses not yet logged.

        Raises:
            UserError: the data changed since the checkpoint was written, or the checkpoint does not fit this run.
        """
        refuse_changed_data(checkpoint, self.state)
        for name, network in self.task.networks.items():
            checkpoint.load_network(name, network)
        self.progress = self._loop_state.restore(checkpoint)
        self._window.load(checkpoint.tensors("window"), self.device)
        if processes.is_first():
            self.checkpoints.forget_after(checkpoint.step)
        # The run may have been killed after writing the checkpoint but before marking it as the best.
        self._mark_best()

    def _mark_best(self) -> None:
        if self.progress.best_value is not None and processes.is_first():
            self.checkpoints.mark_best(self.progress.best_step, self.task.best_metric, self.progress.best_value)

    def _request_stop(self) -> None:
        self._asked = True
        # Several processes agree in the next step: one that left alone would leave the others waiting.
        self._stop = self._stop or processes.count() == 1


def make_optimizer(task: Task, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of a config, with fused kernels if torch has them."""
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError(
            "the network has nothing to train: image tower, text tower and scale are all fixed; set clip.train_image, "
            "clip.train_text or clip.scale (dcmt zeroshot grades without training)"
        )
    groups: Any = parameters
    find_undecayed = getattr(task, "undecayed", None)  # an optional method of a task: parameters without weight decay
    if find_undecayed is not None:
        exempt = {id(parameter) for parameter in find_undecayed()}
        groups = [
            {"params": [parameter for parameter in parameters if id(parameter) not in exempt]},
            {"params": [parameter for parameter in parameters if id(parameter) in exempt], "weight_decay": 0.0},
        ]
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    options["fused"] = device.type in ("cpu", "cuda") or None
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, **options)


def _clip(task: Task, clip_norm: float) -> Tensor:
    """Clip the gradient to the norm ``clip_norm`` (0: no clipping); returns the norm before clipping."""
    if clip_norm:
        return nn.utils.clip_grad_norm_(task.parameters(), clip_norm)
    return nn.utils.get_total_norm([parameter.grad for parameter in task.parameters() if parameter.grad is not None])
