"""What training is told: one frozen configuration, checked when it is made."""

from __future__ import annotations

from dataclasses import fields
from functools import wraps
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from squint._checks import InputError, nearest

_FROZEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
_Config = TypeVar("_Config")

DERIVATIVE = 0.1
"""Steps (L2, pixel units) up to this length count as a derivative, longer ones as an ascent."""
BEFORE = {"step_floor": 0.0}
"""How trainings went before a setting was there, where that is not its default."""


def _one_line_errors(kind: type[_Config]) -> type[_Config]:
    """Return the class with a constructor that raises `InputError`, naming every wrong field."""
    validate: Any = kind.__init__

    @wraps(validate)
    def construct(self: _Config, *args: Any, **values: Any) -> None:
        try:
            validate(self, *args, **values)
        except ValidationError as error:
            problems = "; ".join(_problem(kind, problem) for problem in error.errors())
            raise InputError(f"{kind.__name__}: {problems}") from None

    kind.__init__ = construct  # type: ignore[assignment, method-assign]
    return kind


def _problem(kind: Any, error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("unexpected_keyword_argument", "unexpected_positional_argument"):
        return f"unknown field {place}{nearest(place, [field.name for field in fields(kind)])}"
    return f"{place} is {error['input']!r}: {error['msg']}"


@_one_line_errors
@dataclass(config=_FROZEN)
class ObjectiveConfig:
    """Coefficients of the training loss (`squint.training.terms`); the default is the members' mean loss.

    Raises:
        squint.InputError: a value is not allowed, or a field unknown.
    """

    ensemble: float = Field(default=0.0, ge=0)
    """a: weight of the cross-entropy of the mean prediction."""
    redundancy: float = 0.0
    """beta: weight of I(Z_i; Z_j), summed over pairs of members."""
    conditional_redundancy: float = 0.0
    """gamma: weight of I(Z_i; Z_j | Y), summed over pairs of members."""
    agreement: float = Field(default=0.0, ge=0)
    """eta: weight of the draws' divergence from their member's mean; needs two draws."""
    smoothness: float = Field(default=0.0, ge=0)
    """lambda: weight of the input-gradient penalty; training tier B, or C with a step above 0.1."""
    smoothness_kind: Literal["finite_difference", "curvature", "double_backward"] = "finite_difference"
    """How smoothness is measured."""
    smoothness_step: float = Field(default=0.01, gt=0)
    """h: length of the finite difference, in pixel units (L2)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the label spread over all classes in the members' cross-entropy."""
    information_warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of training (of its first cycle) over which beta and gamma rise from zero."""
    agreement_warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of training (of its first cycle) over which eta rises from zero."""
    smoothness_warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of training (of its first cycle) over which lambda rises from zero."""

    @property
    def tier(self) -> str:
        """The training tier: A uses no input gradients, B penalises them, C trains on points found by ascent.

        A difference that is taken over more than `DERIVATIVE` looks at such a point.
        """
        if self.smoothness == 0:
            return "A"
        derivative = self.smoothness_kind == "double_backward" or self.smoothness_step <= DERIVATIVE
        return "B" if derivative else "C"


@_one_line_errors
@dataclass(config=_FROZEN)
class TrainConfig:
    """How an ensemble is trained.

    Raises:
        squint.InputError: a value is not allowed, or a field unknown.
    """

    epochs: int = Field(default=20, ge=0)
    """Passes over the training images."""
    batch_size: int = Field(default=128, ge=2)
    """Images per step, over all devices."""
    draws: int = Field(default=1, ge=1)
    """Noise samples per member and step."""
    optimizer: Literal["sgd", "adamw", "muon"] = "adamw"
    """SGD with Nesterov momentum, AdamW, or Muon on inner layers' weights with AdamW on all else."""
    learning_rate: float = Field(default=0.003, gt=0)
    """Peak learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """On weights; not on biases, normalization or quantizers."""
    step_floor: float = Field(default=1.5, ge=0, le=10)
    """Least size of the largest level of a weight grid with a learned step, in mean magnitudes of the weights
    that share it; 0 for none. Without one, AdamW and Muon drive steps below zero."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """Rise and fall, fall only, or neither."""
    cycles: int = Field(default=1, ge=1)
    """Times that the schedule runs, in equal parts of the training; each part after the first begins at the
    running average's weights, with a new optimizer (warm restarts, Loshchilov and Hutter 2017)."""
    clip_gradient: float = Field(default=5.0, ge=0)
    """Largest gradient norm per step; 0 for no limit."""
    average: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running weight average that is kept at the end; 0 keeps the last weights."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the networks; "16-mixed" is "32-true" on the CPU, which does not have it."""
    channels_last: bool = False
    """Memory layout of images and weights."""
    compile: bool = False
    """On the CPU: compiled passes of quantizers and a fused AdamW; needs a C++ compiler."""
    crop: int = Field(default=0, ge=0)
    """Padding of the random crop, in pixels."""
    flip: bool = False
    """Random horizontal flips."""
    cutout: int = Field(default=0, ge=0)
    """Side of the square that is blanked at random, in pixels."""
    evaluate_every: int = Field(default=1, ge=1)
    """Epochs between evaluations on validation images."""
    calibration_images: int = Field(default=512, ge=1)
    """Training images from which quantizer ranges are set."""
    seed: int = Field(default=0, ge=0)
    """Of data order, augmentation and noise."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device kind; "auto" is "cuda" where there is one."""
    devices: int = Field(default=1, ge=1)
    """Processes that share each batch; under torchrun, those that it started, over all machines."""
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    """The terms of the loss."""
