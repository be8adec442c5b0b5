"""PNI: trained gaussian noise on weights or on layers' inputs, with adversarial training.

He, Rakin and Fan 2019, "Parametric Noise Injection: Trainable Randomness to Improve Deep Neural Network
Robustness against Adversarial Attack", CVPR, arXiv:1811.09310:

    noise    w~ = w + alpha eta,  eta ~ N(0, sigma^2), sigma the standard deviation of the layer's w
    loss     L = w_c CE(f(x), y) + w_a CE(f(x_adv), y),  w_c = w_a = 1/2

with one trained alpha per layer, started at 0.25. From the paper: noise on weights in every layer (its best
variant), 7 steps of PGD, and the network's own prediction on the clean image as the label that the attack
moves away from. Not from the paper: the radius is the study's unless it is set, and the step a quarter of
it. What departs: alpha has no weight decay; images are crafted in evaluation mode; adversarial training
begins at once (the reference implementation waits five epochs); noise on inputs takes sigma from each
example, where the paper takes it from the batch, so that a prediction does not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from squint._random import default_generator
from squint.baselines.adversarial_training import AdversarialTraining
from squint.baselines.conversion import ConvertedNetwork, replace_layers, weighted_layers, with_weight
from squint.baselines.fixed_pass import member_losses
from squint.baselines.gaussian import draws_alike, folded_draws, gaussian
from squint.baselines.inner_attack import adversarial_examples, radius
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.ensemble import log_mean_probability
from squint.training import Objective


class NoisyLayer(nn.Module):
    """A convolution or linear layer with trained noise on its weight, its input or both.

    Args:
        layer: the layer; it keeps its parameters.
        where: "weight", "input" or "both".
        start: where alpha starts.
    """

    draws_noise = True

    def __init__(self, layer: nn.Module, where: str, start: float) -> None:
        super().__init__()
        self.layer = layer
        self.alpha_weight = nn.Parameter(torch.tensor(start)) if where in ("weight", "both") else None
        self.alpha_input = nn.Parameter(torch.tensor(start)) if where in ("input", "both") else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; every draw folded into the batch has noise of its own."""
        if self.alpha_input is not None:
            sigma = x.detach().flatten(1).std(1).view(-1, *[1] * (x.ndim - 1))
            x = x + self.alpha_input * sigma * gaussian(x.shape, x)
        if self.alpha_weight is None:
            output: Tensor = self.layer(x)
            return output
        weight: Any = self.layer.weight
        draws = folded_draws()
        noise = weight.detach().std() * gaussian((draws, *weight.shape), weight)
        weights = weight + self.alpha_weight * noise
        if draws_alike():
            return with_weight(self.layer, weights[0], x)
        parts = [with_weight(self.layer, w, part) for w, part in zip(weights, x.chunk(draws), strict=True)]
        return torch.cat(parts)


@dataclass(config=OPTIONS)
class Pni(Rival):
    """Trained noise on the weights of every layer."""

    name: ClassVar[str] = "pni"
    own_loss: ClassVar[bool] = True
    own_layers: ClassVar[bool] = True
    where: Literal["weight", "input", "both"] = "weight"
    """What the noise is added to."""
    alpha_start: float = Field(default=0.25, ge=0)
    """Where every layer's noise level starts."""
    adversarial: bool = True
    """Train on adversarial images too, as the paper does."""
    adversarial_share: float = Field(default=0.5, ge=0, le=1)
    """Weight of their loss; the clean loss has the rest."""
    attack: AdversarialTraining = Field(default_factory=AdversarialTraining)
    """The training attack: eps, steps and step_size."""

    @property
    def tier(self) -> str:
        """C with adversarial training, A without."""
        return "C" if self.adversarial else "A"

    def check(self, setup: Setup) -> None:
        """Raise `InputError` where the configuration has no radius to train at."""
        super().check(setup)
        if self.adversarial:
            radius(self.attack.eps, setup.eps, self.name)

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network with noisy layers."""
        del place
        replace_layers(
            network, weighted_layers(network), lambda layer: NoisyLayer(layer, self.where, self.alpha_start)
        )
        return ConvertedNetwork(network, self.plain())

    def objective(self, setup: Setup) -> Objective:
        """Return both losses, or the clean one alone without adversarial training."""
        eps = radius(self.attack.eps, setup.eps, self.name) if self.adversarial else 0.0
        share = self.adversarial_share if self.adversarial else 0.0
        draws = setup.training_draws

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            del step
            clean = ens.member_logits(x, draws, generator=default_generator())
            terms = {"clean_ce": (1 - share) * member_losses(clean, y).mean()}
            if self.adversarial:
                predicted = log_mean_probability(clean.detach()).argmax(-1)
                points = adversarial_examples(
                    ens, x, predicted, eps=eps, steps=self.attack.steps, step_size=self.attack.step_size
                )
                logits = ens.member_logits(points, draws, generator=default_generator())
                terms["adversarial_ce"] = share * member_losses(logits, y).mean()
            return terms

        return objective

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the passes of the clean loss and, with adversarial training, of the attack and its loss."""
        return members * (2 * draws + self.attack.steps if self.adversarial else draws)
