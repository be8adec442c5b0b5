"""What a detector reads: the logits of every unit, and with them its penultimate features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from squint._checks import InputError, need_members
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel
from squint.ensemble import Ensemble
from squint.quantize import QuantizedNetwork


class WithFeatures(nn.Module):
    """An ensemble whose units' outputs are their logits followed by their features, on the same draws.

    `member_logits` returns (draws, members, batch, classes + features), members with fewer features than the
    widest padded with zeros; the noise, and so the logits, are those of the ensemble itself.
    """

    def __init__(self, ens: Ensemble) -> None:
        super().__init__()
        self.ens = ens

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return (draws, members, batch, classes + features)."""
        with _recorded(self.ens) as seen:
            logits = self.ens.member_logits(x, draws, generator=generator, stratified=stratified)
        rows = [torch.cat(parts) for parts in seen]
        held = [own.view(-1, len(x), own.shape[-1]).expand(draws, -1, -1) for own in rows]
        width = max(features.shape[-1] for features in held)
        padded = [nn.functional.pad(features, (0, width - features.shape[-1])) for features in held]
        return torch.cat([logits, torch.stack(padded, 1)], -1)


@contextmanager
def _recorded(ens: Ensemble) -> Iterator[list[list[Tensor]]]:
    """Collect for each member, pass by pass, what the feature layer that ran last was given."""
    seen: list[list[Tensor]] = [[] for _ in ens.members]
    handles = []
    for member, parts in zip(ens.members, seen, strict=True):
        latest: list[Tensor] = []

        def look(_: nn.Module, inputs: tuple[Tensor, ...], latest: list[Tensor] = latest) -> None:
            latest[:] = inputs[:1]

        def keep(
            module: nn.Module, *_: object, latest: list[Tensor] = latest, parts: list[Tensor] = parts
        ) -> None:
            if not latest:
                raise InputError(
                    f"{type(module).__name__} has no linear layer: name the layer of its features in "
                    "quantize(features=...)"
                )
            parts.append(latest[0].flatten(1))

        handles += [layer.register_forward_pre_hook(look) for layer in _layers(member)]
        handles.append(member.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layers(member: nn.Module) -> list[nn.Module]:
    if isinstance(member, QuantizedNetwork) and member.features is not None:
        return [member.network.get_submodule(member.features)]
    return [module for module in member.modules() if isinstance(module, nn.Linear)]


@torch.no_grad()
def deployments(
    model: AnyModel, x: Tensor, *, draws: int, count: int, generator: torch.Generator, batch_size: int = 100
) -> Iterator[Tensor]:
    """Yield batch by batch the outputs of `count` deployments, (count, draws, members, batch, width)."""
    asked = need_members(model, "detection")
    for first in range(0, len(x), batch_size):
        outputs = asked.member_logits(x[first : first + batch_size], count * draws, generator=generator)
        yield outputs.view(count, draws, *outputs.shape[1:])


class Observed:
    """Outputs of one deployment of each image, remembered: several scores are fitted on the same ones.

    One object serves fits of equal images, seed and draws; the noise is that of the ensemble in any case.

    Args:
        seed: base of the streams.
        draws: draws S of one deployment.
    """

    def __init__(self, seed: int, draws: int) -> None:
        self.seed, self.draws = seed, draws
        self._held: dict[tuple[object, ...], Tensor] = {}

    def outputs(self, model: AnyModel, x: Tensor, *keys: object) -> Tensor:
        """Return (draws, members, n, width) on the CPU; the noise is keyed by `keys`."""
        place = (isinstance(model, WithFeatures), len(x), *keys)
        if place not in self._held:
            generator = derive_generator(self.seed, "detector", *keys)
            parts = deployments(model, x, draws=self.draws, count=1, generator=generator)
            self._held[place] = torch.cat([part[0].cpu() for part in parts], 2)
        return self._held[place]
