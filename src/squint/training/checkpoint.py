"""Checkpoints: everything that a training needs to go on as if it had never stopped, without pickle."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from squint._checks import InputError
from squint._files import read_tensors, write_tensors
from squint.training.config import BEFORE, TrainConfig
from squint.training.muon import MATRICES, MOMENTUM

FORMAT_VERSION = 1
DATA, MODEL, OBJECTIVE = "data", "model", "loss"
"""In a recipe, the digest of what is trained on, that of the network's settings, and the objective's name."""
_OTHER = {
    DATA: "on other images or labels (as many, but not the same): give it those that it was begun with",
    MODEL: "of a network of other layers or quantizers (bits, noise, gradients): train that one on",
    OBJECTIVE: "with another objective: give it the one that it was begun with",
}
"""What is said where these differ. Checkpoints from before they were kept have none of them."""
_KEY = "squint_checkpoint"
_WIDTH = re.compile(r"\bwidth=[^,]*, ")
_SHARE = 0.03
"""Checkpoints that take long take no more than this share of the training."""
_LONG = 0.25
"""Seconds that a checkpoint may take after every epoch."""


@dataclass
class Progress:
    """How far a training is; plain data.

    Attributes:
        step: steps done.
        sums: each term of the loss, summed over the steps of the unfinished epoch.
        seconds: time spent, over all runs.
        entries: log entries of the finished epochs.
        scaler: state of the gradient scaler of half precision; empty without one.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    entries: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, float] = field(default_factory=dict)


@dataclass
class Rhythm:
    """When checkpoints are written: after every epoch, or less often where writing takes its time.

    Attributes:
        saved: when the last one was written, or the training began.
        took: seconds that it took.
    """

    saved: float = field(default_factory=time.perf_counter)
    took: float = 0.0

    def due(self) -> bool:
        """Return whether another one costs little beside the training since the last."""
        return self.took < _LONG or self.took <= _SHARE * (time.perf_counter() - self.saved)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time the writing that is done inside."""
        started = time.perf_counter()
        yield
        self.saved = time.perf_counter()
        self.took = self.saved - started


def data_digest(images: Tensor, labels: Tensor) -> str:
    """Return a hash of images and labels: their kinds, shapes and contents."""
    found = hashlib.sha256()
    for tensor in (images, labels):
        held = tensor.detach().cpu().contiguous()
        found.update(f"{held.dtype}{tuple(held.shape)}".encode())
        found.update(held.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def settings_digest(module: nn.Module) -> str:
    """Return a hash of what a network is, but for what its state holds: layers and quantizers as printed."""
    found = hashlib.sha256()
    for name, part in module.named_modules():
        # Widths may be learned, and are part of the state.
        printed = _WIDTH.sub("", part.extra_repr())
        found.update(f"{name}\x1f{type(part).__module__}.{type(part).__qualname__}\x1f{printed}\x1e".encode())
    return found.hexdigest()


def recipe_of(
    config: TrainConfig,
    module: nn.Module,
    objective: Callable[..., object],
    images: Tensor,
    labels: Tensor,
    processes: int,
) -> dict[str, Any]:
    """Return what a checkpoint must share with a training that goes on from it, as plain data."""
    recipe = asdict(config)
    # Where and how fast it runs, and how often it is looked at, do not make another training.
    for free in ("accelerator", "devices", "compile", "evaluate_every"):
        recipe.pop(free)
    named: Any = objective if hasattr(objective, "__qualname__") else type(objective)
    return recipe | {
        "images": len(images),
        DATA: data_digest(images, labels),
        MODEL: settings_digest(module),
        OBJECTIVE: f"{named.__module__}.{named.__qualname__}",
        # Noise and augmentation are each process's own: another number of them is another training.
        "processes": processes,
    }


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor],
    progress: Progress,
    recipe: Mapping[str, Any],
) -> None:
    """Write weights, optimizer state, weight average and progress as one file, whole or not at all.

    Args:
        path: file to write; an existing one is replaced.
        module: the network that is trained.
        optimizer: its optimizer.
        average: running average of the weights by name; empty without one.
        progress: how far the training is.
        recipe: plain data that names the training; only the same one goes on from this file.
    """
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    numbers: dict[str, float] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    header = {
        "format_version": FORMAT_VERSION,
        "recipe": dict(recipe),
        "progress": asdict(progress),
        "numbers": numbers,
    }
    write_tensors(path, tensors, {_KEY: json.dumps(header)})


def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor],
    recipe: Mapping[str, Any],
) -> Progress:
    """Restore `module`, `optimizer` and `average` in place, or change nothing, and return the progress.

    Raises:
        squint.InputError: no whole checkpoint, of another format, of another network or another training.
    """
    again = "remove it to train from the start"
    try:
        tensors, metadata = read_tensors(path)
    except InputError as error:
        raise InputError(f"{error}; {again}") from None
    version, stored_recipe, progress, numbers = _header(path, metadata)
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}; this squint reads {FORMAT_VERSION}: update squint, "
            f"or {again}"
        )
    # A checkpoint from before an option was there is of a training with its default, or as it was without it.
    stored_recipe = asdict(TrainConfig()) | BEFORE | stored_recipe
    for key, value in recipe.items():
        if key in _OTHER:
            if stored_recipe.get(key, value) != value:
                raise InputError(
                    f"{path} is of a training {_OTHER[key]}, or remove the file to train from the start"
                )
        elif stored_recipe.get(key) != value:
            raise InputError(
                f"{path} is of another training: {key} was {stored_recipe.get(key)!r}, is {value!r}; "
                "train as before, or remove the file"
            )
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "average": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    for part, expected in (("module", module.state_dict()), ("average", average)):
        shapes = {name: (value.shape, value.dtype) for name, value in parts[part].items()}
        if shapes != {name: (value.shape, value.dtype) for name, value in expected.items()}:
            raise InputError(f"{path} holds the weights of another network")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    needed = [_keys(optimizer, group) for group in optimizer.param_groups for _ in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, held in [*parts["optimizer"].items(), *numbers.items()]:
        index, _, key = name.partition(".")
        place = int(index) if index.isdecimal() else len(parameters)
        fits = place < len(parameters) and (
            not isinstance(held, Tensor) or held.ndim == 0 or held.shape == parameters[place].shape
        )
        if not fits:
            raise InputError(f"{path} holds an optimizer of another network: {name}")
        state.setdefault(place, {})[key] = held.clone() if isinstance(held, Tensor) else held
    for place, values in state.items():
        if values.keys() != needed[place]:
            raise InputError(f"{path} holds another optimizer's state of parameter {place}")
    module.load_state_dict(parts["module"])
    for name, kept in average.items():
        kept.copy_(parts["average"][name])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _keys(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> set[str]:
    """Return the names of what the optimizer keeps for each weight of a group."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {"step", MOMENTUM} if group.get(MATRICES) else {"step", "exp_avg", "exp_avg_sq"}
    return {MOMENTUM}


def _header(
    path: Path, metadata: Mapping[str, str]
) -> tuple[int, dict[str, Any], Progress, dict[str, float]]:
    """Return version, recipe, progress and the optimizer's numbers from a checkpoint's header, checked."""
    try:
        header = json.loads(metadata[_KEY])
        recipe, numbers = dict(header["recipe"]), dict(header["numbers"])
        progress = Progress(**header["progress"])
        whole = all(type(value) is int and value >= 0 for value in (progress.step, header["format_version"]))
        held = [progress.seconds, *dict(progress.sums).values(), *dict(progress.scaler).values()]
        held += numbers.values()
        plain = all(type(value) in (int, float) and math.isfinite(value) for value in held)
        listed = isinstance(progress.entries, list) and all(isinstance(e, dict) for e in progress.entries)
        if not (whole and plain and listed):
            raise ValueError
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        raise InputError(f"{path} is no checkpoint of squint's") from None
    return header["format_version"], recipe, progress, numbers
