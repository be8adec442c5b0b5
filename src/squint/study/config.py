"""A study as data: data set, network, systems, training and attack, checked when it is made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, field_validator, model_validator
from pydantic.dataclasses import dataclass

from squint._checks import InputError, check_choice, format_fraction, parse_fraction
from squint.baselines import Rival, Setup, make_rival
from squint.data.catalog import CHOICES, FOLDER_PREFIX
from squint.evaluation.settings import named_settings
from squint.models import MODELS
from squint.study.member_config import MemberConfig as MemberConfig
from squint.training import ObjectiveConfig, TrainConfig

_FROZEN = ConfigDict(extra="forbid", frozen=True)
_BETWEEN = ("redundancy", "conditional_redundancy")
_SYSTEM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(config=_FROZEN)
class SystemConfig:
    """One row of the comparison: an ensemble and the loss it is trained with."""

    title: str = ""
    """Name in tables and plots."""
    description: str = ""
    """One sentence for the report."""
    members: tuple[MemberConfig, ...] = (MemberConfig(),)
    """One entry per member."""
    draws: int = Field(default=4, ge=1)
    """Noise samples S per member of the deployed prediction."""
    training_draws: int = Field(default=1, ge=1)
    """Noise samples per member and training step."""
    epochs: int | None = Field(default=None, ge=0)
    """Epochs of this system; None: the recipe's, or what equal compute asks for."""
    start: str | None = None
    """Weights that training goes on from: a file, a published folder or a shipped model; None: fresh ones."""
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    """The terms of the training loss."""
    rival: str | None = None
    """A published defence in the place of squint's own, by name: see docs/rivals.md; None: squint's own."""
    rival_options: dict[str, Any] = Field(default_factory=dict)
    """What differs from the rival's own settings."""

    @property
    def defence(self) -> Rival:
        """The rival, or one that changes nothing."""
        return Rival() if self.rival is None else make_rival(self.rival, self.rival_options)

    @property
    def tier(self) -> str:
        """The training tier: that of the rival or of the loss, whichever sees more."""
        return max(self.defence.tier, self.objective.tier)

    def setup(self, eps: float, total_steps: int = 0) -> Setup:
        """Return what the defence is told of this system, of the study's radius and of its training."""
        return Setup(
            members=len(self.members),
            quantized=any(member.quantized for member in self.members),
            draws=self.draws,
            training_draws=self.training_draws,
            objective=self.objective,
            eps=eps,
            total_steps=total_steps,
        )

    @model_validator(mode="after")
    def _trainable(self) -> SystemConfig:
        if not self.members:
            raise ValueError("members is empty; allowed: one member or more")
        if self.objective.agreement > 0 and self.training_draws < 2:
            raise ValueError(
                f"training_draws is {self.training_draws}; allowed: 2 or more where objective.agreement is "
                f"above 0 (here {self.objective.agreement:g})"
            )
        between = [name for name in _BETWEEN if getattr(self.objective, name) != 0]
        if between and self.rival is None and len(self.members) < 2:
            raise ValueError(
                f"members has 1 entry; allowed: two or more where objective.{between[0]} is not 0 "
                f"(here {getattr(self.objective, between[0]):g}), which is between members"
            )
        if self.rival is None and self.rival_options:
            raise ValueError("rival_options is set without a rival; allowed: with one")
        _ = self.defence  # which checks the options
        return self


@dataclass(config=_FROZEN)
class AttackConfig:
    """How the systems are attacked and scored."""

    split: Literal["test", "validation"] = "test"
    """Which images are attacked: a search among configurations attacks validation, never test images."""
    images: int = Field(default=500, ge=1)
    """Images that are attacked, from the first."""
    ladder: Literal["quick", "standard", "exhaustive"] | None = None
    """Budget of the ladder at the headline's radius; None: it is not climbed, and no figure is trusted."""
    ladder_images: int | None = Field(default=None, ge=1)
    """Images on which the ladder is climbed, from the first; None: all that are attacked."""
    attacks: tuple[str, ...] = ("seed",)
    """seed (the seed protocol), fgsm or pgd-eot10, run one after another; the first is the headline's."""
    resubmissions: int | None = Field(default=None, ge=1)
    """Fresh deployments of every image that are scored; None: the ladder's budget's, 64 for other attacks."""
    batch_size: int = Field(default=100, ge=1)
    """Images attacked at once; part of what the noise depends on."""

    @field_validator("attacks")
    @classmethod
    def _attacks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        named_settings(value)
        return value


@dataclass(config=_FROZEN)
class RecipeConfig:
    """A whole study: train systems on one data set, attack them all, compare."""

    name: str = "study"
    """Name of the recipe."""
    description: str = ""
    """What the recipe shows."""
    dataset: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100 or folder:PATH (folder:PATH@32: resized to 32x32 pixels)."""
    data_dir: str | None = None
    """Folder with the data set's files; None: the cache, filled by a download."""
    validation: int | None = Field(default=None, ge=0)
    """Training images held out for validation; None: the data set's default."""
    model: str = "small_cnn"
    """small_cnn, resnet8, resnet20 or resnet18."""
    width: int = Field(default=16, ge=1)
    """Channels of the network's first layer."""
    patch: int = Field(default=1, ge=1, le=8)
    """Stride of a residual network's stem, of twice as many pixels; 1: a 3x3 convolution."""
    systems: dict[str, SystemConfig] = Field(default_factory=dict)
    """What is compared, by name."""
    headline: str | None = None
    """Name of the system that the study is about; None: the last one."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """Training, shared by all systems; their own objectives and training_draws replace the ones here."""
    attack: AttackConfig = Field(default_factory=AttackConfig)
    """Attack and scoring."""
    equal_compute: bool = False
    """Give every system the forward passes of the headline's training, by more epochs; never by fewer."""
    kind: Literal["comparison", "hypothesis"] = "comparison"
    """comparison of systems; hypothesis: also of their members and subsets, at equal draws and budgets."""
    eps: str = "5/255"
    """L-infinity radius of the headline, a fraction in [0, 1]."""
    curve: tuple[str, ...] = ("2/255", "8/255")
    """Further radii, for the curve of accuracy against eps."""
    seed: int = Field(default=0, ge=0)
    """Base of every random stream of the study."""

    @field_validator("eps", mode="before")
    @classmethod
    def _eps(cls, value: Any) -> Any:
        return _radius(value)

    @field_validator("curve", mode="before")
    @classmethod
    def _curve(cls, value: Any) -> Any:
        return tuple(_radius(eps) for eps in value) if isinstance(value, list | tuple) else value

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        check_choice("model", value, MODELS)
        return value

    @field_validator("dataset")
    @classmethod
    def _dataset(cls, value: str) -> str:
        if not value.startswith(FOLDER_PREFIX):
            check_choice("dataset", value, CHOICES)
        return value

    @field_validator("train")
    @classmethod
    def _train(cls, value: TrainConfig) -> TrainConfig:
        if value.objective != ObjectiveConfig() or value.draws != 1:
            raise ValueError(
                "train.objective and train.draws are set; allowed in a study: the objective and "
                "training_draws of each system"
            )
        return value

    @field_validator("systems")
    @classmethod
    def _systems(cls, value: dict[str, SystemConfig]) -> dict[str, SystemConfig]:
        for name in value:
            # They are the names of files and of command-line options.
            if not _SYSTEM_NAME.fullmatch(name):
                raise ValueError(f"systems has {name!r}; allowed: names of letters, digits, - and _")
        return value

    @model_validator(mode="after")
    def _patched(self) -> RecipeConfig:
        if self.patch > 1 and not self.model.startswith("resnet"):
            raise ValueError(f"patch is {self.patch} with {self.model}; allowed: 1, or a residual network")
        return self

    @model_validator(mode="after")
    def _headline(self) -> RecipeConfig:
        if not self.systems:
            raise ValueError("systems is empty; allowed: one system or more")
        if self.headline is not None:
            check_choice("headline", self.headline, self.systems)
        for name, system in self.systems.items():
            try:
                system.defence.check(system.setup(parse_fraction("eps", self.eps)))
            except InputError as error:
                raise ValueError(f"systems.{name}: {error}") from None
        return self

    @model_validator(mode="after")
    def _started(self) -> RecipeConfig:
        for name, system in self.systems.items():
            if system.start is not None and (self.equal_compute or self.kind == "hypothesis"):
                raise ValueError(
                    f"systems.{name}.start is {system.start!r}; allowed: none with equal_compute and in a "
                    "hypothesis, which count all training"
                )
        return self

    @property
    def headline_system(self) -> str:
        """Name of the system that the study is about."""
        return self.headline or list(self.systems)[-1]


def _radius(value: Any) -> Any:
    """Return a radius as text; YAML reads 0.02 as a number."""
    if isinstance(value, str | int | float):
        parse_fraction("eps", value)
        return value if isinstance(value, str) else str(value)
    return value


ADAPTER = TypeAdapter(RecipeConfig)
"""Makes a `RecipeConfig` of plain data, checked, and plain data of it."""


def to_plain(config: RecipeConfig) -> dict[str, Any]:
    """Return the recipe as plain data, every field present."""
    plain: dict[str, Any] = ADAPTER.dump_python(config, mode="json")
    return plain


def decisive(config: RecipeConfig) -> dict[str, Any]:
    """Return what decides a study's results as plain data: not where its data lie."""
    plain = to_plain(config) | {"headline": config.headline_system}
    plain.pop("data_dir")
    return plain


def config_hash(config: RecipeConfig) -> str:
    """Return a hash of everything that decides a study's results."""
    return hashlib.sha256(json.dumps(decisive(config), sort_keys=True).encode()).hexdigest()[:16]


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any], place: str = "") -> str | None:
    """Return the dotted name of the first field in which two plain recipes differ, or None."""
    for key in [*a, *(key for key in b if key not in a)]:
        name = f"{place}{key}"
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            deeper = first_difference(left, right, f"{name}.")
            if deeper is not None:
                return deeper
        elif left != right:
            return f"{name} (was {left!r}, now {right!r})"
    return None


def radius_text(eps: str) -> str:
    """Return a radius as records write it."""
    return format_fraction(parse_fraction("eps", eps))
