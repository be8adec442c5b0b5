"""What will be exported, as a list of steps; unsupported layers are refused here, before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.models import Normalize, ResNet, SmallCNN
from squint.models.networks import _Block
from squint.quantize import QuantizedNetwork, StochasticQuantizer, needs_calibration, quantizers


@dataclass(frozen=True)
class Product:
    """A convolution or linear layer with the normalization folded into it and the rectifier behind it."""

    name: str
    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None = None
    relu: bool = False


@dataclass(frozen=True)
class Residual:
    """A basic block: two convolutions beside a shortcut, then a rectifier."""

    name: str
    block: nn.Module
    first: Product
    second: Product
    shortcut: Product | None


@dataclass(frozen=True)
class Pool:
    """The mean over height and width."""

    keep: bool = False


@dataclass(frozen=True)
class Flatten:
    """All dimensions but the batch in one."""


Step = Normalize | Product | Residual | Pool | Flatten


@dataclass(frozen=True)
class MemberPlan:
    """One member: the quantizer of its input and its steps in order."""

    name: str
    input_quantizer: StochasticQuantizer | None
    steps: tuple[Step, ...]

    def products(self) -> Iterator[Product]:
        """Yield every convolution and linear layer in order."""
        for step in self.steps:
            if isinstance(step, Product):
                yield step
            elif isinstance(step, Residual):
                yield from (p for p in (step.first, step.second, step.shortcut) if p is not None)


def plan_ensemble(ens: Ensemble) -> list[MemberPlan]:
    """Return what to emit for every member, with the rounding modes that the members have now.

    Raises:
        squint.InputError: a layer has no ONNX form here, a range was never set, a weight is noisy, or a grid
            does not fit 8-bit integers.
    """
    plans = []
    for place, member in enumerate(ens.members):
        name = f"members.{place}"
        if needs_calibration(member):
            raise InputError(f"{name} has no range yet: call squint.calibrate(net, images) first")
        network = member.network if isinstance(member, QuantizedNetwork) else member
        quantizer = member.input_quantizer if isinstance(member, QuantizedNetwork) else None
        plan = MemberPlan(name, quantizer, tuple(_steps(network, name)))
        for product in plan.products():
            _check_product(product)
        unseen = set(quantizers(member)) - set(_seen(plan))
        if unseen or not isinstance(plan.steps[-1], Product):
            raise InputError(f"{name} does not end in a linear layer; allowed: networks that return logits")
        plans.append(plan)
    return plans


def image_channels(plans: Sequence[MemberPlan]) -> int | None:
    """Return how many channels the images have, or None where the first layer takes flat images."""
    first = next(plans[0].products()).layer
    return first.in_channels if isinstance(first, nn.Conv2d) else None


def _seen(plan: MemberPlan) -> Iterator[StochasticQuantizer]:
    if plan.input_quantizer is not None:
        yield plan.input_quantizer
    for product in plan.products():
        yield from (q for q in quantizer_pair(product.layer) if q is not None)


def quantizer_pair(layer: nn.Module) -> tuple[StochasticQuantizer | None, StochasticQuantizer | None]:
    """Return the layer's activation quantizer and its weight quantizer, None where it has none."""
    return getattr(layer, "activation_quantizer", None), getattr(layer, "weight_quantizer", None)


def _steps(network: nn.Module, name: str) -> list[Step]:
    if type(network) is SmallCNN:
        convolutions = [
            _convolution(cast(nn.Sequential, getattr(network, part)), f"{name}.{part}", relu=True)
            for part in ("conv1", "conv2", "conv3")
        ]
        last = Product(f"{name}.classifier", network.classifier)
        return [network.normalize, *convolutions, Pool(), last]
    if type(network) is ResNet:
        blocks = [
            _residual(cast(_Block, block), f"{name}.stages.{place}")
            for place, block in enumerate(network.stages)
        ]
        stem = _convolution(network.stem, f"{name}.stem", relu=True)
        return [network.normalize, stem, *blocks, Pool(), Product(f"{name}.classifier", network.classifier)]
    if isinstance(network, nn.Sequential):
        return _sequence(list(_flat(network, name)))
    raise InputError(
        f"{name} is a {type(network).__name__}, which cannot be exported; allowed: the networks of "
        "squint.models, and torch.nn.Sequential of their kinds of layer"
    )


def _convolution(pair: nn.Sequential, name: str, *, relu: bool = False) -> Product:
    return Product(f"{name}.0", cast(nn.Conv2d, pair[0]), cast(nn.BatchNorm2d, pair[1]), relu)


def _residual(block: _Block, name: str) -> Residual:
    shortcut = None
    if isinstance(block.shortcut, nn.Sequential):
        shortcut = _convolution(block.shortcut, f"{name}.shortcut")
    return Residual(
        name,
        block,
        _convolution(block.conv1, f"{name}.conv1", relu=True),
        _convolution(block.conv2, f"{name}.conv2"),
        shortcut,
    )


def _flat(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of nested sequences in order; those that do nothing in evaluation are left out."""
    if isinstance(module, nn.Sequential):
        # `named_children` gives a layer that runs twice once.
        for place, child in module._modules.items():
            if child is not None:
                yield from _flat(child, f"{name}.{place}")
    elif not isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
        yield name, module


def _sequence(layers: list[tuple[str, nn.Module]]) -> list[Step]:
    steps: list[Step] = []
    for name, layer in layers:
        last = steps[-1] if steps else None
        if isinstance(layer, nn.Conv2d | nn.Linear):
            steps.append(Product(name, layer))
        elif isinstance(layer, nn.BatchNorm2d) and isinstance(last, Product) and _bare_convolution(last):
            steps[-1] = Product(last.name, last.layer, layer)
        elif isinstance(layer, nn.ReLU) and isinstance(last, Product) and not last.relu:
            steps[-1] = Product(last.name, last.layer, last.norm, relu=True)
        elif isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            steps.append(Pool(keep=True))
        elif isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
            steps.append(Flatten())
        elif isinstance(layer, Normalize):
            steps.append(layer)
        else:
            raise InputError(
                f"{name} ({type(layer).__name__}) cannot be exported; allowed in a torch.nn.Sequential: "
                "Conv2d, Linear, BatchNorm2d behind Conv2d, ReLU behind these, AdaptiveAvgPool2d(1), Flatten"
            )
    return steps


def _bare_convolution(product: Product) -> bool:
    return isinstance(product.layer, nn.Conv2d) and product.norm is None and not product.relu


def _check_product(product: Product) -> None:
    layer = product.layer
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        raise InputError(f"{product.name} pads {layer.padding_mode!r} by {layer.padding!r}; allowed: zeros")
    if product.norm is not None and product.norm.running_var is None:
        raise InputError(f"{product.name}: its batch normalization keeps no statistics and cannot be folded")
    activation, weight = quantizer_pair(layer)
    if weight is not None and weight.stochastic:
        raise InputError(
            f"{product.name} has noisy weights, which a graph cannot draw; export with rounding='nearest'"
        )
    if weight is not None and not (2 * float(weight.offset)).is_integer():
        raise InputError(f"{weight.name} starts at {float(weight.offset):g} steps; allowed: halves")
    if activation is not None:
        offset = float(activation.offset)
        if not offset.is_integer() or not -255 <= offset <= 0:
            raise InputError(f"{activation.name} starts at {offset:g} steps; allowed: whole, -255..0")
