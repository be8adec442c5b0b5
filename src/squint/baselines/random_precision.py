"""Random precision: one network, quantized to a precision that is drawn anew for every prediction.

Fu, Yu, Li, Chandra and Lin 2021, "Double-Win Quant: Aggressively Winning Robustness of Quantized Deep Neural
Networks via Random Precision Training and Inference", ICML. Weights and inputs of every layer take one of the
precisions of a set, by linear quantization between their smallest and largest value:

    q_k(v) = low + Delta round( (v - low)/Delta ),  Delta = (high - low)/(2^k - 1)

    random precision inference (RPI)   k ~ U(set) for each prediction
    random precision training (RPT)    k ~ U(set) for each step, for the attack and for the update, and batch
                                       normalization that keeps statistics and scales of its own for each k

From the paper: the set 4 to 16 bits, weights by output channel, inputs by a running mean of the batch's
ends, straight-through gradients, one shared set of weights, adversarial training by 7 steps of PGD.
`training: fixed` is RPI alone: trained in full precision with one set of statistics, drawn only when it
predicts. Not from the paper: the radius is the study's unless it is set. What departs: biases stay as they
are; draws that are averaged have a precision each; images are crafted in evaluation mode. The table of
costs counts the largest precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from squint._checks import InputError
from squint._random import default_generator
from squint.baselines.adversarial_training import AdversarialTraining
from squint.baselines.conversion import replace_layers, weighted_layers
from squint.baselines.fixed_pass import member_losses
from squint.baselines.inner_attack import adversarial_examples, radius
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.baselines.switchable import RandomPrecisionNetwork, SwitchableLayer, SwitchableNorm, norms_of
from squint.training import Objective


@contextmanager
def held_precision(ens: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Draw one precision per network of random precision inside `ens`, and keep it for all passes inside."""
    networks = [module for module in ens.modules() if isinstance(module, RandomPrecisionNetwork)]
    for network in networks:
        home = generator.device
        network.held = int(torch.randint(len(network.bits), (), generator=generator, device=home))
    try:
        yield
    finally:
        for network in networks:
            network.held = None


@dataclass(config=OPTIONS)
class RandomPrecision(Rival):
    """Precision drawn per prediction, and per step of training."""

    name: ClassVar[str] = "random-precision"
    own_loss: ClassVar[bool] = True
    own_layers: ClassVar[bool] = True
    bits: tuple[int, ...] = Field(default=tuple(range(4, 17)), min_length=1)
    """The set of precisions, each 1 to 16."""
    training: Literal["random", "fixed"] = "random"
    """random: precision drawn per step, with switchable statistics; fixed: trained in full precision."""
    adversarial: bool = False
    """Train on adversarial images alone, as the paper does."""
    attack: AdversarialTraining = Field(default_factory=AdversarialTraining)
    """The training attack: eps, steps and step_size."""

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < 2 or len(set(value)) < len(value) or not all(1 <= b <= 16 for b in value):
            raise InputError("allowed: two precisions or more, each once and in 1..16, to draw among")
        return value

    @property
    def tier(self) -> str:
        """C with adversarial training, A without."""
        return "C" if self.adversarial else "A"

    def check(self, setup: Setup) -> None:
        """Raise `InputError` where there is no radius to train at, or no precision to train at it."""
        super().check(setup)
        if self.adversarial and self.training == "fixed":
            raise InputError(
                "training is 'fixed' and adversarial is true; rival random-precision allowed: training "
                "'random' with it, because its attacks see precisions that training 'fixed' leaves out"
            )
        if self.adversarial:
            radius(self.attack.eps, setup.eps, self.name)

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network with switchable layers and, where training is random, normalization."""
        del place
        replace_layers(network, weighted_layers(network), lambda layer: SwitchableLayer(layer, self.bits))
        if self.training == "random":
            count = len(self.bits)
            replace_layers(network, norms_of(network), lambda norm: SwitchableNorm(norm, count))
        return RandomPrecisionNetwork(network, self.plain(), self.bits, self.training == "random")

    def objective(self, setup: Setup) -> Objective:
        """Return the loss at one precision per step, at adversarial images where that is asked for."""
        eps = radius(self.attack.eps, setup.eps, self.name) if self.adversarial else 0.0

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            del step
            generator = default_generator()
            with held_precision(ens, generator):
                if self.adversarial:
                    x = adversarial_examples(
                        ens, x, y, eps=eps, steps=self.attack.steps, step_size=self.attack.step_size
                    )
                logits = ens.member_logits(x, setup.training_draws, generator=generator)
            name = "adversarial_ce" if self.adversarial else "member_ce"
            return {name: member_losses(logits, y).mean()}

        return objective

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the passes of the loss and, with adversarial training, of the attack's steps."""
        return members * (draws + (self.attack.steps if self.adversarial else 0))
