"""Gradients of a loss that is pooled once over all units (draw, member), exact and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from squint import _random
from squint._checks import (
    HasMemberLogits,
    InputError,
    InputTypeError,
    Model,
    check_labels,
    check_logits,
    check_number,
)
from squint.attacks.geometry import per_example
from squint.attacks.objectives import Objective

AnyModel = Model | HasMemberLogits
"""A callable returning logits (batch, classes), or a model whose members can be asked one by one."""

View = Callable[[Tensor], Tensor]
"""A differentiable change of the images before the model sees them, fixed while a gradient is taken."""

_nan_reported = ContextVar("_nan_reported", default=False)


class Units:
    """A model seen as units (draw, member) under noise that a seed fixes.

    A model with `member_logits` is asked for `draws` draws of all its members; any other callable is called
    `draws` times, each call under its own noise and never folded into the batch. The same seed gives the same
    noise, which is what makes replaying a pass, and comparing two points on one bank of noise, possible.

    Args:
        model: what is attacked.
        y: labels (batch,); checked against the number of classes at the first forward pass.
        draws: single draws per evaluation (the attacks' `eot`).
        stratified: Latin-hypercube noise over the draws.
        chunk: draws whose graph is held in memory at once; None holds all of them. It changes no draw's noise
            where a model with `member_logits` draws nothing from its generator but seeds, as
            `squint.Ensemble` does.
        targets: target classes (batch,), checked as the labels are.

    Raises:
        InputError: for a count below one, labels that do not fit, logits of the wrong shape, or NaN for all
            images at the first forward pass.
    """

    def __init__(
        self,
        model: AnyModel,
        y: Tensor,
        draws: int,
        *,
        stratified: bool = False,
        chunk: int | None = None,
        targets: Tensor | None = None,
    ) -> None:
        if not callable(model) and not isinstance(model, HasMemberLogits):
            raise InputTypeError(
                f"the model is {type(model).__name__}; needed: a callable returning logits, or member_logits"
            )
        self.model = model
        self.y = y
        self.targets = targets
        self.draws = int(check_number("eot", draws, 1, whole=True))
        self.chunk = None if chunk is None else int(check_number("chunk", chunk, 1, whole=True))
        self.stratified = stratified
        self._seen = False

    def part(self, rows: Tensor, draws: int) -> Units:
        """Return the same model as units of some rows (n,) of the batch, with another number of draws."""
        targets = None if self.targets is None else self.targets[rows]
        part = Units(
            self.model, self.y[rows], draws, stratified=self.stratified, chunk=self.chunk, targets=targets
        )
        part._seen = self._seen
        return part

    def logits(self, x: Tensor, seed: int, *, draws: int | None = None) -> Tensor:
        """Return logits (draws, members, batch, classes) without gradients, under the noise of `seed`."""
        with torch.no_grad():
            return self._all(x, seed, draws or self.draws)[0]

    def gradients(
        self, x: Tensor, objective: Objective, seed: int, *, view: View | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses (rows, batch) and their gradients (rows, *x.shape), both in float64.

        A first pass without graph gives all logits z_a and A_a = ∂L/∂z_a from a float64 loss head; a second
        replays the same noise in chunks and back-propagates Σ⟨A_a, z_a⟩. Exact for any loss of all units.
        Where all draws fit in one chunk the first pass keeps its graph and there is no second. A model
        without a gradient gives zeros. An image of which a logit is NaN has the loss +inf (`nan_found`).

        Args:
            x: images (batch, ...).
            objective: logits (draws, members, batch, classes) -> (batch,) or (rows, batch).
            seed: fixes the noise of every draw.
            view: change of the images before the model sees them.
        """
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            shown = leaf if view is None else view(leaf)
            if self.chunk is None or self.draws <= self.chunk:
                z, _ = self._all(shown, seed, self.draws)
                losses, cotangents, scale = _head(z, objective)
                return losses, _rescale(_pull(z, leaf, cotangents), scale)
            with torch.no_grad():
                z, states = self._all(shown, seed, self.draws)
            losses, cotangents, scale = _head(z, objective)
            total = torch.zeros(len(losses), *x.shape, dtype=torch.float64, device=x.device)
            generator = torch.Generator()
            for part, state in zip(_chunks(self.draws, self.chunk), states, strict=True):
                generator.set_state(state)
                shown = leaf if view is None else view(leaf)
                z, _ = self._forward(shown, generator, part, self.draws, seed)
                total += _pull(z, leaf, cotangents[:, part.start : part.stop])
            return losses, _rescale(total, scale)

    def gradient(
        self, x: Tensor, objective: Objective, seed: int, *, view: View | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return one loss (batch,) and its gradient, shaped like x, both in float64; see `gradients`."""
        losses, gradients = self.gradients(x, objective, seed, view=view)
        return losses[0], gradients[0]

    def _all(self, x: Tensor, seed: int, draws: int) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of all draws, and the generator's state from which each chunk began.

        Every chunk begins where the first did and takes its own of all the draws' seeds: how the draws are
        cut changes no noise. A model that draws anything else than seeds by `next_seeds` goes on where the
        last chunk ended, or its chunks would have noise in common.
        """
        generator = torch.Generator().manual_seed(seed)
        first = generator.get_state()
        states: list[Tensor] = []
        parts: list[Tensor] = []
        after, cuts = first, True
        for part in _chunks(draws, self.chunk):
            states.append(generator.get_state())
            z, cut = self._forward(x, generator, part, draws, seed)
            if cuts and not cut and parts:
                # Not like the chunks before: what they drew is not drawn again.
                generator.set_state(after)
                states[-1] = after
                z, _ = self._forward(x, generator, part, draws, seed)
            parts.append(z)
            cuts = cuts and cut
            if cuts:
                after = generator.get_state()
                generator.set_state(first)
        z = torch.cat(parts)
        if not self._seen:
            self._first_look(z)
        return z, states

    def _forward(
        self, x: Tensor, generator: torch.Generator, part: range, total: int, seed: int
    ) -> tuple[Tensor, bool]:
        """Return the logits of some of `total` draws, and whether their seeds were cut from all."""
        if isinstance(self.model, HasMemberLogits):
            extra = {"stratified": True} if self.stratified else {}
            with _random.part_of_draws(generator, part, total) as note:
                z = self.model.member_logits(x, draws=len(part), generator=generator, **extra)
            if z.ndim != 4 or z.shape[0] != len(part) or z.shape[2] != len(x):
                raise InputError(
                    f"member_logits returned shape {tuple(z.shape)}; "
                    f"needed: ({len(part)} draws, members, {len(x)} images, classes)"
                )
            return z, note.taken
        outputs = []
        seeds = _random.next_seeds(generator, total)[part.start : part.stop]
        for place, draw_seed in zip(part, seeds, strict=True):
            strata = [place] if self.stratified else None
            with _random.draw_noise([draw_seed], strata=strata, strata_total=total, shared_seed=seed):
                outputs.append(self.model(x))
            check_logits(outputs[-1], len(x))
        return torch.stack(outputs).unsqueeze(1), True

    def _first_look(self, z: Tensor) -> None:
        """Check once what only a forward pass can tell: the labels against the classes, and NaN."""
        check_labels(self.y, z.shape[2], z.shape[3])
        if self.targets is not None:
            check_labels(self.targets, z.shape[2], z.shape[3], name="targets")
        if bool(_nan_images(z).all()) and not _nan_reported.get():
            raise InputError(f"the model returned NaN for all {z.shape[2]} images; needed: finite logits")
        self._seen = True


def nan_found(goal: Objective) -> Objective:
    """Return the objective with +inf for every image of which a logit is NaN.

    Such an output is an error, so the point is as good as any: an attack that stepped back from it would make
    NaN a refuge.
    """

    def judged(z: Tensor) -> Tensor:
        return goal(z).masked_fill(_nan_images(z), math.inf)

    return judged


@contextmanager
def nan_reported() -> Iterator[None]:
    """Let attacks start where all outputs are NaN: who calls them counts these as errors and says so."""
    token = _nan_reported.set(True)
    try:
        yield
    finally:
        _nan_reported.reset(token)


def _nan_images(z: Tensor) -> Tensor:
    """Return a mask (batch,) of the images for which any unit's logits (..., batch, classes) hold a NaN."""
    return z.detach().isnan().any(-1).flatten(0, -2).any(0)


def usable(loss: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return which examples a step can begin from (batch, 1, ...), and their gradient made finite, else 0.

    Those whose loss is finite and whose gradient is not NaN throughout.

    Args:
        loss: (batch,).
        gradient: (batch, ...).
    """
    sound = per_example(loss.isfinite() & ~gradient.isnan().flatten(1).all(1), gradient)
    return sound, made_finite(gradient).where(sound, 0.0)


def made_finite(gradient: Tensor) -> Tensor:
    """Return gradients (batch, ...) with NaN as 0, and infinity as the largest finite element of its example.

    A single such element must not stop the attack on its image, which goes on along the others.
    """
    known = gradient.isfinite()
    largest = gradient.abs().where(known, 0.0).flatten(1).amax(1)
    limit = per_example(largest.where(largest > 0, 1.0), gradient)
    return gradient.where(known, gradient.nan_to_num(0.0, math.inf, -math.inf).sign() * limit)


def _chunks(draws: int, chunk: int | None) -> list[range]:
    size = chunk or draws
    return [range(first, min(first + size, draws)) for first in range(0, draws, size)]


def _head(z: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses (rows, batch), cotangents (rows, *z.shape) of largest element 1, and what they lack.

    The scale is taken out of each example's cotangent before it is cast to the model's precision: a saturated
    network's e^−60 would otherwise underflow on its way back through the layers.
    """
    leaf = z.detach().double().requires_grad_()
    with torch.enable_grad():
        losses = nan_found(objective)(leaf).reshape(-1, z.shape[2])
    rows = [torch.autograd.grad(row.sum(), leaf, retain_graph=True)[0] for row in losses]
    cotangents = torch.stack(rows)
    size = cotangents.abs().amax(dim=(1, 2, 4))
    scaled = cotangents / size.clamp_min(1e-300)[:, None, None, :, None]
    return losses.detach(), scaled.to(z.dtype), size


def _pull(z: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
    """Return the gradients (rows, *leaf.shape) of Σ⟨cotangent, z⟩ in float64."""
    if not z.requires_grad:
        return torch.zeros(len(cotangents), *leaf.shape, dtype=torch.float64, device=leaf.device)
    pulled = []
    for row, cotangent in enumerate(cotangents):
        more = row + 1 < len(cotangents)
        (gradient,) = torch.autograd.grad(z, leaf, cotangent, retain_graph=more, allow_unused=True)
        pulled.append(torch.zeros_like(leaf) if gradient is None else gradient)
    return torch.stack(pulled).double()


def _rescale(gradients: Tensor, scale: Tensor) -> Tensor:
    return gradients * scale.view(*scale.shape, *[1] * (gradients.ndim - 2))
