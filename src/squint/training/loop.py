"""The training loop: `fit`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from squint import _ranks
from squint import data as D
from squint._checks import InputError, InputTypeError
from squint._random import derive_generator, derive_seed, noise
from squint.ensemble import Ensemble
from squint.quantize.compiled import compiled_passes
from squint.training.checkpoint import (
    DATA,
    MODEL,
    Progress,
    Rhythm,
    load_checkpoint,
    recipe_of,
    save_checkpoint,
)
from squint.training.config import TrainConfig
from squint.training.decomposition import DECOMPOSED, decompose
from squint.training.interrupt import TrainingStopped, enough_memory, stop_requests
from squint.training.launching import make_fabric
from squint.training.objective import EnsembleObjective, Objective, summed
from squint.training.preparation import (
    as_float,
    check_classes,
    devices_in_use,
    gathered,
    make_optimizer,
    prepare,
    seed_torch,
    update_average,
)
from squint.training.schedule import cycle_length, learning_rate
from squint.training.step_floor import StepFloor
from squint.training.synchronised import synchronised


@dataclass(frozen=True)
class Watcher:
    """Who is told how training goes.

    Attributes:
        on_step: called after every step with the steps done and the steps in all.
        on_epoch: called after every epoch with its log entry.
    """

    on_step: Callable[[int, int], None] = lambda _step, _total: None
    on_epoch: Callable[[dict[str, Any]], None] = lambda _entry: None


def fit(
    ens: Ensemble,
    train_data: D.Data,
    config: TrainConfig | None = None,
    objective: Objective | None = None,
    *,
    validation: D.Data | None = None,
    checkpoint: Path | None = None,
    watcher: Watcher | None = None,
) -> list[dict[str, Any]]:
    """Train an ensemble in place and return one log entry per epoch (terms, accuracy, seconds).

    With `config.devices` above 1, or under torchrun, this is called by every process alike. Each step's batch
    is divided among them; batch statistics, information terms and gradients are those of the whole batch,
    while augmentation and noise are each process's own. All of them end with the same weights.

    Quantizers without ranges are calibrated first. Data order, augmentation and noise derive from
    `config.seed` and the step alone, so a training that is stopped and continued from its checkpoint gives
    the weights of one that never stopped. Torch's global generator is left as it was. The ensemble is left in
    evaluation mode and without gradients, on the device of the training.

    Args:
        ens: the ensemble; its members' weights change.
        train_data: images in [0, 1] (or uint8) and labels: a pair, an `ImageData` or an iterable of pairs.
        config: how to train; None: the defaults.
        objective: objective(ens, x, y, step) -> dict of named scalar terms, whose sum is minimised; None: the
            loss that `config.objective` describes.
        validation: data of the periodic evaluation; None: none.
        checkpoint: file that is continued where it exists, and written on Ctrl-C and after every epoch, or
            less often where that would take more than 3 % of the time (a large network on a fast machine).
        watcher: callbacks for progress bars and logs.

    Raises:
        squint.InputError: the data or the configuration are not allowed, the loss or its gradient is not
            finite, memory runs out, or the checkpoint is of another training.
        squint.InputTypeError: `ens` is no ensemble, or the objective returns something else than named terms.
        TrainingStopped: Ctrl-C, after the checkpoint was written.
    """
    if not isinstance(ens, Ensemble):
        raise InputTypeError(f"fit needs a squint.Ensemble, got {type(ens).__name__}; use Ensemble([...])")
    config = config or TrainConfig()
    images, labels = gathered(train_data)
    held_out = None if validation is None else gathered(validation)
    if len(images) < config.batch_size:
        raise InputError(
            f"train.batch_size is {config.batch_size}; allowed: at most the {len(images)} images"
        )
    steps_per_epoch = len(images) // config.batch_size
    cycle = cycle_length(steps_per_epoch * config.epochs, config.cycles)
    # Terms have risen once when the first cycle is done; a restart lets none of them fall.
    objective = objective or EnsembleObjective(config.objective, config.draws, cycle)
    # Models and objectives may draw from torch's own generator; each step seeds it, and here it is put back.
    with torch.random.fork_rng(devices_in_use()):
        num_classes = prepare(ens, images, config)
        check_classes(labels, num_classes, "labels")
        if held_out is not None:
            check_classes(held_out[1], num_classes, "validation labels")
        run = _Run(ens, images, labels, config, objective, held_out, checkpoint, watcher or Watcher())
        try:
            with (
                stop_requests() as stop,
                synchronised(ens),
                enough_memory(config, len(ens.members), checkpoint),
                compiled_passes(config.compile and run.fabric.device.type == "cpu"),
            ):
                run.train(stop)
        finally:
            run.optimizer.zero_grad(set_to_none=True)
            ens.eval()
    return run.progress.entries


class _Run:
    """One training: everything that lives from the first step to the last."""

    def __init__(
        self,
        ens: Ensemble,
        images: Tensor,
        labels: Tensor,
        config: TrainConfig,
        objective: Objective,
        validation: D.Batch | None,
        checkpoint: Path | None,
        watcher: Watcher,
    ) -> None:
        self.ens, self.config, self.objective, self.watcher = ens, config, objective, watcher
        self.checkpoint, self.validation = checkpoint, validation
        self.fabric = make_fabric(config)
        if config.channels_last:
            ens.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module, self.optimizer = self.fabric.setup(ens, make_optimizer(ens, config, self.fabric.device))
        for method in ("member_logits", "logits_and_features", "features"):
            self.module.mark_forward_method(method)
        self.step_floor = StepFloor(ens, config.step_floor)
        self.dtype = next(ens.parameters()).dtype
        self.images, self.labels = images.to(self.fabric.device), labels.to(self.fabric.device)
        self.scales = bool(self.fabric.strategy.precision.state_dict())
        self.augment = D.Augmentation(crop=config.crop, flip=config.flip, cutout=config.cutout)
        self.steps_per_epoch = len(images) // config.batch_size
        self.total = self.steps_per_epoch * config.epochs
        self.cycle = cycle_length(self.total, config.cycles)
        # Every step changes these tensors in place, and none puts others in their stead.
        self.state = ens.state_dict()
        self.average = {name: value.clone() for name, value in self.state.items() if config.average > 0}
        self.progress = Progress()
        self.rhythm = Rhythm()
        self.recipe: dict[str, Any] = {}
        if checkpoint is not None or self.fabric.world_size > 1:
            self.recipe = recipe_of(config, ens, objective, images, labels, self.fabric.world_size)
            digests = [self.recipe[what][:12] for what in (DATA, MODEL)]
            _ranks.agreed(digests, "the hashes of the training data and of the network")
        if checkpoint is not None and _ranks.agreed(checkpoint.exists(), f"whether {checkpoint} exists"):
            self.progress = load_checkpoint(checkpoint, ens, self.optimizer, self.average, self.recipe)
            self.fabric.strategy.precision.load_state_dict(self.progress.scaler)
        if self.progress.step > self.total:
            raise InputError(f"{checkpoint} is at step {self.progress.step} of {self.total}")

    def train(self, stop: threading.Event) -> None:
        """Run all steps that are left, or until `stop` is set."""
        progress, config = self.progress, self.config
        started = time.perf_counter() - progress.seconds
        self.ens.train()
        while progress.step < self.total:
            epoch, first = divmod(progress.step, self.steps_per_epoch)
            order = D.epoch_permutation(len(self.images), derive_generator(config.seed, "order", epoch))
            for batch in range(first, self.steps_per_epoch):
                start = batch * config.batch_size
                self._step(order[start : start + config.batch_size])
                if stopping := _ranks.any_of(stop.is_set()):
                    break
            progress.seconds = time.perf_counter() - started
            if progress.step % self.steps_per_epoch == 0:
                self._end_epoch(epoch)
            if stopping or _ranks.any_of(stop.is_set()):
                self._save()
                # A process that ends takes its job with it: the file must be there before one does.
                _ranks.exchange(None)
                raise TrainingStopped
        if self.average:
            self.ens.load_state_dict(self.average)
        _ranks.share_state(self.ens)

    def _step(self, order: Tensor) -> None:
        """Do one step on the images at `order`, of which every device takes its share."""
        progress, config, fabric = self.progress, self.config, self.fabric
        step, rank = progress.step, fabric.global_rank
        if step > 0 and step % self.cycle == 0:
            self._restart()
        chosen = order[rank :: fabric.world_size].to(self.images.device)
        x = as_float(self.images[chosen], self.dtype)
        x = self.augment(x, derive_generator(config.seed, "augment", step, rank))
        if config.channels_last:
            x = x.to(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate(step % self.cycle, self.cycle, config.schedule)
        seed_torch(derive_seed(config.seed, "torch", step, rank), fabric.device)
        with fabric.autocast(), noise(derive_generator(config.seed, "noise", step, rank)):
            terms = self.objective(self.module, x, self.labels[chosen], step)
        loss, values = summed(terms, step)
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        _ranks.average_gradients(self.ens)
        if config.clip_gradient:
            # A gradient scaler skips steps that overflow by itself; other gradients must be finite.
            norm = fabric.clip_gradients(
                self.module, self.optimizer, max_norm=config.clip_gradient, error_if_nonfinite=False
            )
            if norm is not None and not self.scales and not math.isfinite(float(norm)):
                raise InputError(f"the gradient is not finite at step {step}; lower train.learning_rate")
        self.optimizer.step()
        self.step_floor.hold()
        update_average(self.average, self.state, config.average, step)
        for name, value in values.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        progress.step = step + 1
        self.watcher.on_step(progress.step, self.total)

    def _restart(self) -> None:
        """Begin a cycle at the average's weights, with an optimizer that knows of no step."""
        if self.average:
            self.ens.load_state_dict(self.average)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": {}})

    def _end_epoch(self, epoch: int) -> None:
        progress, config = self.progress, self.config
        means = {name: value / self.steps_per_epoch for name, value in progress.sums.items()}
        due = (epoch + 1) % config.evaluate_every == 0 or progress.step == self.total
        entry = {
            "event": "epoch",
            "epoch": epoch + 1,
            "epochs": config.epochs,
            "terms": means | {"total": sum(means.values())},
            "validation_accuracy": None,
            "seconds": progress.seconds,
        }
        if self.validation and due:
            entry |= self._validate(*self.validation, epoch)
        progress.entries.append(entry)
        progress.sums = {}
        if self.rhythm.due() or progress.step == self.total:
            self._save()
        self.watcher.on_epoch(entry)

    def _validate(self, images: Tensor, labels: Tensor, epoch: int) -> dict[str, Any]:
        """Return accuracy and information, term by term, of the weights that would be kept now."""
        ens, config, device = self.ens, self.config, self.fabric.device
        held = {name: value.clone() for name, value in ens.state_dict().items()} if self.average else {}
        if self.average:
            ens.load_state_dict(self.average)
        ens.eval()
        right = 0
        with torch.no_grad(), noise(derive_generator(config.seed, "validation", epoch)):
            for x, y in D.iterate((images, labels), 256):
                right += int((ens(x.to(device, self.dtype)).argmax(1) == y.to(device)).sum())
        few = slice(0, DECOMPOSED)
        terms = decompose(
            ens,
            as_float(images[few], self.dtype).to(device),
            labels[few].to(device),
            config.draws,
            derive_generator(config.seed, "decomposition", epoch),
        )
        ens.train()
        if self.average:
            ens.load_state_dict(held)
        return {"validation_accuracy": right / len(labels), "information": terms}

    def _save(self) -> None:
        if self.checkpoint is None or not self.fabric.is_global_zero:
            return
        self.progress.scaler = self.fabric.strategy.precision.state_dict()
        with self.rhythm.saving():
            save_checkpoint(
                self.checkpoint, self.ens, self.optimizer, self.average, self.progress, self.recipe
            )
