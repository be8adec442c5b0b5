"""The ensemble: members, draws, and the mean probability over both."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from squint._checks import InputError, InputTypeError, check_images, check_logits, check_number
from squint._random import default_generator, draw_noise, draw_seeds
from squint.quantize import QuantizedNetwork, StochasticQuantizer
from squint.quantize.modes import parts_of

DEFAULT_CHUNK = 512
_FRACTIONAL = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_ON_GPU = 8
"""How many times as many images a GPU gets at once: with 512 it waits for the next kernel to be started."""


class Ensemble(nn.Module):
    """Predicts by the mean probability over members and draws.

    Members may differ in architecture, bit-widths, noise and weights. Every draw of every member has a seed
    of its own. Draws are folded into the batch, as many at a time as fit `chunk` images; the chunk changes
    neither the noise of a draw nor its logits, but for kernels that round differently at other batch sizes:

    - Members made of torch's and squint's layers without noise run once, whatever the number of draws.
    - Members with noisy weights, and members that may draw noise of their own (other people's module classes,
      dropout in training mode), run one draw at a time. Torch's generator is then seeded by the draw's seed,
      and put back afterwards.
    - Members that normalize by the batch (batch normalization in training mode) run with all draws in one
      batch, which gives the statistics: a gradient needs the memory of all draws in any case.

    Args:
        members: networks that map (batch, channels, height, width) to logits (batch, classes).
        draws: noise samples S per member of the deployed prediction.
        chunk: most images per forward pass of a member, eight times as many on a GPU (at least one draw
            always runs whole).

    Raises:
        squint.InputError: no members, or draws or chunk below 1.
        squint.InputTypeError: a member is no module.
    """

    def __init__(self, members: Sequence[nn.Module], draws: int = 4, *, chunk: int = DEFAULT_CHUNK) -> None:
        super().__init__()
        if isinstance(members, nn.Module) and not isinstance(members, nn.ModuleList):
            raise InputTypeError(f"members is one {type(members).__name__}; needed: a list of networks")
        if not members:
            raise InputError("members is empty; allowed: one network or more")
        for index, member in enumerate(members):
            if not isinstance(member, nn.Module):
                raise InputTypeError(
                    f"members[{index}] is {type(member).__name__}; needed: a torch.nn.Module"
                )
        self.members = nn.ModuleList(members)
        self.draws = int(check_number("draws", draws, 1, whole=True))
        self.chunk = int(check_number("chunk", chunk, 1, whole=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return the log mean probability (batch, classes) over members and `self.draws` draws.

        It can be used as logits, and attacked as such.

        Args:
            x: images (batch, channels, height, width) in [0, 1].

        Raises:
            squint.InputError: values out of [0, 1], no images, or images that do not fit a member.
        """
        _check_pixels(x)
        return log_mean_probability(self.member_logits(x, self.draws))

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return every member's logits under every draw, (draws, members, batch, classes).

        Args:
            x: images (batch, channels, height, width) in [0, 1]. Their values are not checked here: finite
                differences step out of the range, and a check would make a GPU wait at every attack step.
            draws: noise samples per member.
            generator: source of the draws' seeds; None: the innermost `squint.noise`, or squint's own stream.
            stratified: give each element's draws one stratum each (Latin hypercube) instead of independence.
        """
        return self._run(x, draws, generator, stratified)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return each member's features (batch, features_m) under one draw.

        They are the float input of the linear layer that runs last, or of the layer that
        `quantize(features=)` named, flattened; `x` is as in `forward`.
        """
        _check_pixels(x)
        return self.logits_and_features(x, 1)[1]

    def logits_and_features(
        self, x: Tensor, draws: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return `member_logits` and the features of the first draw, from one forward pass."""
        features: list[Tensor] = []
        logits = self._run(x, draws, generator, False, features)
        return logits, features

    def _run(
        self,
        x: Tensor,
        draws: int,
        generator: torch.Generator | None,
        stratified: bool,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        draws = int(check_number("draws", draws, 1, whole=True))
        if not isinstance(x, Tensor):
            raise InputTypeError(f"images must be a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
            raise InputError(
                f"images have shape {tuple(x.shape)} and dtype {x.dtype}; allowed: a non-empty float batch"
            )
        generator = default_generator() if generator is None else generator
        outputs: list[Tensor] = []
        chunk = self.chunk * (_ON_GPU if x.is_cuda else 1)
        for place, member in enumerate(self.members):
            # Seeds are drawn for every member, noisy or not: what one draws does not depend on the others.
            seeds, shared = draw_seeds(generator, draws)
            logits = _draws_of(member, x, seeds, shared if stratified else None, chunk, features)
            if outputs and logits.shape[-1] != outputs[0].shape[-1]:
                raise InputError(
                    f"members[{place}] has {logits.shape[-1]} classes, members[0] has "
                    f"{outputs[0].shape[-1]}; allowed: the same number"
                )
            outputs.append(logits)
        return torch.stack(outputs, 1)


def _check_pixels(x: Tensor) -> None:
    # A graph that is being traced has no values to look at.
    if not torch.compiler.is_compiling():
        check_images(x)


def _draws_of(
    member: nn.Module,
    x: Tensor,
    seeds: Sequence[int],
    shared_seed: int | None,
    chunk: int,
    features: list[Tensor] | None,
) -> Tensor:
    """Return one member's logits (draws, batch, classes); `shared_seed` asks for stratified draws."""
    draws, batch = len(seeds), x.shape[0]
    # Walked through once: a small network's pass takes no longer than a few such walks.
    parts = parts_of(member)
    noisy = [part for part in parts if isinstance(part, StochasticQuantizer) and part.stochastic]
    own_noise = any(map(_is_own_noise, parts))
    if not (noisy or own_noise or any(map(_says_noisy, parts))):
        with _captured(member, features, batch, batch):
            logits: Tensor = member(x)
        check_logits(logits, batch)
        return logits.expand(draws, -1, -1)
    # The batch shares noisy weights, so that folded draws would gain nothing.
    if own_noise or any(quantizer.name.endswith("weight_quantizer") for quantizer in noisy):
        size = 1
    elif any(map(_normalizes_by_batch, parts)):
        size = draws
    else:
        size = max(1, chunk // batch)
    outputs = []
    for start in range(0, draws, size):
        stop = min(start + size, draws)
        strata = None if shared_seed is None else range(start, stop)
        # Concatenation keeps the memory format of the images; repetition would not.
        folded = x if stop - start == 1 else torch.cat([x] * (stop - start))
        with (
            draw_noise(seeds[start:stop], strata=strata, strata_total=draws, shared_seed=shared_seed or 0),
            _torch_noise(seeds[start], x.device) if own_noise else nullcontext(),
            _captured(member, features if start == 0 else None, len(folded), batch),
        ):
            logits = member(folded)
        check_logits(logits, len(folded))
        outputs.append(logits.reshape(stop - start, batch, -1))
    return torch.cat(outputs)


@contextmanager
def _torch_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Let what draws from torch's global generators depend on `seed`; put them back afterwards."""
    cuda = [torch.device("cuda", device.index or 0)] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.default_generator.manual_seed(seed)
        for place in cuda:
            torch.cuda.default_generators[place.index or 0].manual_seed(seed)
        yield


@contextmanager
def _captured(member: nn.Module, features: list[Tensor] | None, rows: int, batch: int) -> Iterator[None]:
    """Append the features of the first `batch` of `rows` images to `features`, where asked for."""
    if features is None:
        yield
        return
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    handles = [layer.register_forward_pre_hook(keep) for layer in _feature_layers(member)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not seen or seen[0].shape[0] != rows:
        raise InputError(
            f"{type(member).__name__} has no linear layer that sees one row per image: "
            "name the layer of its features in quantize(features=...)"
        )
    features.append(seen[0][:batch].flatten(1))


def _feature_layers(member: nn.Module) -> list[nn.Module]:
    """Return the layers of which the one that runs last sees the member's features."""
    if isinstance(member, QuantizedNetwork) and member.features is not None:
        return [member.network.get_submodule(member.features)]
    return [module for module in parts_of(member) if isinstance(module, nn.Linear)]


def varies(member: nn.Module) -> bool:
    """Return whether the member's output can differ between draws.

    Only networks made of torch's and squint's own layers are known to be still without noise; others might
    draw their own, unless their class says `draws_noise = False`. Layers of squint's that are noisy without a
    quantizer say so by `draws_noise`, too.
    """
    parts = parts_of(member)
    noisy = any(isinstance(part, StochasticQuantizer) and part.stochastic for part in parts)
    return noisy or any(map(_is_own_noise, parts)) or any(map(_says_noisy, parts))


def draws_own_noise(member: nn.Module) -> bool:
    """Return whether the member may draw noise that does not come from squint's quantizers."""
    return any(map(_is_own_noise, parts_of(member)))


def _says_noisy(module: nn.Module) -> bool:
    return bool(getattr(type(module), "draws_noise", False))


def _is_own_noise(module: nn.Module) -> bool:
    if isinstance(module, Ensemble):
        return any(varies(member) for member in module.members)
    if is_foreign(module) and not says_still(module):
        return True
    if isinstance(module, _FRACTIONAL):
        return True
    if not module.training:
        return False
    # Attention and recurrent layers hold their dropout as a number.
    share = module.p if isinstance(module, _DropoutNd) else vars(module).get("dropout", 0)
    return isinstance(module, nn.RReLU) or (isinstance(share, float | int) and share > 0)


def is_foreign(module: nn.Module) -> bool:
    """Return whether a module's class is neither torch's nor squint's, so that nothing is known of it."""
    return not _is_known(type(module).__module__)


@functools.cache
def _is_known(place: str) -> bool:
    return place.startswith(("torch.nn.", "squint."))


def says_still(module: nn.Module) -> bool:
    """Return whether a layer that is neither torch's nor squint's says that it draws no noise of its own."""
    return is_foreign(module) and getattr(module, "draws_noise", None) is False


def _normalizes_by_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def log_mean_probability(logits: Tensor) -> Tensor:
    """Return log mean softmax of (..., batch, classes) over all leading dimensions: (batch, classes)."""
    flat = logits.flatten(0, -3).log_softmax(-1)
    return torch.logsumexp(flat, 0) - math.log(flat.shape[0])
