"""Networks from a recipe, and facts about them."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import squint.models as M
from squint import data as D
from squint._checks import InputError
from squint._random import derive_seed
from squint.baselines import ConvertedNetwork
from squint.ensemble import Ensemble
from squint.export import load
from squint.quantize import QuantizedNetwork, quantize, quantizers
from squint.study.config import MemberConfig, RecipeConfig, SystemConfig
from squint.training.checkpoint import settings_digest


def placed(ens: Ensemble, recipe: RecipeConfig) -> Ensemble:
    """Return an ensemble, moved to the device that its recipe computes on."""
    on_gpu = torch.cuda.is_available() and recipe.train.accelerator != "cpu"
    return ens.to("cuda" if on_gpu else "cpu")


def channel_statistics(data: D.ImageData) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel, of images in [0, 1]."""
    images = data.images.double().div(255)
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    return [round(float(v), 5) for v in mean], [round(max(float(v), 1e-3), 5) for v in std]


def build_system(recipe: RecipeConfig, name: str, train: D.ImageData) -> Ensemble:
    """Return a system's ensemble as its training begins; equal recipes and seeds give equal weights.

    Member k starts from the same fresh weights in every system of a study, so that systems differ by their
    quantization and their loss alone; a system with `start` goes on from the weights of that file. Torch's
    global generator is left as it was.

    Raises:
        squint.InputError: `start` is no file of squint's, or of other networks or quantizers.
    """
    system = recipe.systems[name]
    mean, std = channel_statistics(train)
    members = []
    defence = system.defence
    with torch.random.fork_rng(devices=[]):
        for place in range(defence.member_count(len(system.members))):
            torch.manual_seed(derive_seed(recipe.seed, "weights", place))
            network = build_network(recipe, train, mean, std)
            if place < len(system.members):
                network = quantized(network, system.members[place])
            members.append(defence.member(network, place))
    ens = defence.ensemble(members, system.draws)
    if system.start is not None:
        _begin_at(ens, name, system.start)
    return ens


def build_network(
    recipe: RecipeConfig, train: D.ImageData, mean: list[float] | None = None, std: list[float] | None = None
) -> nn.Module:
    """Return a member's network in full precision with fresh weights.

    Raises:
        squint.InputError: a width or patch that the network does not take.
    """
    patch = {"patch": recipe.patch} if recipe.patch > 1 else {}
    return M.MODELS[recipe.model](
        train.num_classes, train.shape[0], recipe.width, mean=mean, std=std, **patch
    )


def _begin_at(ens: Ensemble, name: str, path: str) -> None:
    """Give an ensemble the weights, ranges and statistics of a file of the same networks."""
    option = f"systems.{name}.start"
    try:
        begun = load(path)
    except InputError as error:
        raise InputError(f"{option} is {path!r}: {error}") from None
    if settings_digest(begun) != settings_digest(ens):
        raise InputError(
            f"{option} is {path!r}, of other networks or quantizers; allowed: weights of the system's own"
        )
    ens.load_state_dict(begun.state_dict())


def quantized(network: nn.Module, member: MemberConfig) -> nn.Module:
    """Return the network quantized as a recipe's member says, or as it is."""
    if not member.quantized:
        return network
    return quantize(
        network,
        member.weight_bits,
        member.activation_bits,
        member.input_bits,
        first_last_bits=member.first_last_bits,
        noise=member.noise,
        input_width=member.input_width,
        activation_width=member.activation_width,
        granularity=member.granularity,
        input_range=member.input_range,
    )


def describe_system(name: str, system: SystemConfig, ens: Ensemble, seconds: float) -> dict[str, Any]:
    """Return the facts about a trained system that the report shows."""
    own = {id(p) for q in quantizers(ens) for p in q.parameters()}
    return {
        "name": name,
        "title": system.title or name,
        "description": system.description,
        "tier": system.tier,
        "members": len(ens.members),
        "parameters": sum(p.numel() for p in ens.parameters() if id(p) not in own),
        "weight_bits": "/".join(_weight_bits(member) for member in ens.members),
        "input_bits": "/".join("32" if m.input_bits is None else str(m.input_bits) for m in system.members),
        "training_draws": system.training_draws,
        "training_seconds": seconds,
        **({} if system.start is None else {"start": system.start}),
    }


def _weight_bits(member: nn.Module) -> str:
    """Return the bits of a member's inner weights as text; 32 for full precision."""
    if isinstance(member, ConvertedNetwork):
        return member.weight_bits
    bits = member.settings["weight_bits"] if isinstance(member, QuantizedNetwork) else None
    return "32" if bits is None else str(bits)


def environment() -> tuple[dict[str, str], dict[str, Any]]:
    """Return the versions and the hardware that figures depend on."""
    versions = {"python": platform.python_version()}
    for package in ("squint-nn", "torch", "numpy", "lightning-fabric", "scikit-learn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    return versions, hardware


def _processor() -> str:
    """Return the kind of processor as Linux names it, or as Python does where there is no /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
