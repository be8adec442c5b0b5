"""`save` and `load`: one safetensors file with its configuration as JSON in the header; never pickle."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from squint._checks import InputError, InputTypeError, check_choice, check_number, describe
from squint._files import read_tensors, write_tensors
from squint.baselines import ConvertedNetwork, VotingEnsemble, make_rival
from squint.ensemble import Ensemble
from squint.export.packing import pack, unpack
from squint.models import build, spec_of
from squint.quantize import QuantizedNetwork, StochasticQuantizer, quantize
from squint.quantize.functional import GRADIENTS
from squint.quantize.layers import QUANTIZED
from squint.quantize.quantizer import ROUNDINGS
from squint.zoo import resolved, weights

FORMAT_VERSION = 1
_KEY = "squint"
_MOST_DRAWS = 10**6
_MOMENTUM = re.compile(r"momentum=[^,]*")
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def save(ens: Ensemble, path: str | Path, *, packed: bool = False) -> None:
    """Write an ensemble to one file, whole or not at all.

    The file holds every weight, range and width, and as JSON what is needed to build the members again:
    quantization settings, rounding and gradient modes, draws and chunk. Networks of `squint.models` are
    rebuilt from it; for others the architecture is not stored.

    Args:
        ens: the ensemble; it is not changed.
        path: file to write, usually `*.safetensors`; an existing one is replaced.
        packed: store quantized weights in their 1 to 8 bits, as the levels they round to. Outputs stay the
            same bit for bit; what training keeps below the rounding is lost.

    Raises:
        squint.InputError: the file cannot be written.
        squint.InputTypeError: `ens` is no ensemble.
    """
    if not isinstance(ens, Ensemble):
        raise InputTypeError(f"save needs a squint.Ensemble, got {type(ens).__name__}; use Ensemble([...])")
    members = []
    for member in ens.members:
        rival = member.rival if isinstance(member, ConvertedNetwork) else None
        inner = member.network if isinstance(member, QuantizedNetwork) else member
        members.append(
            {
                "model": _fitting_spec(inner, rival),
                "quantize": member.settings if isinstance(member, QuantizedNetwork) else None,
                "rival": rival,
                "modes": {
                    name: [quantizer.rounding, quantizer.gradient]
                    for name, quantizer in _named_quantizers(member).items()
                },
            }
        )
    config = {
        "format_version": FORMAT_VERSION,
        "draws": ens.draws,
        "chunk": ens.chunk,
        "votes": isinstance(ens, VotingEnsemble),
        "members": members,
    }
    tensors, packing = pack(ens) if packed else (ens.state_dict(), {})
    write_tensors(Path(path), tensors, {_KEY: json.dumps(config, allow_nan=False), **packing})


def _fitting_spec(network: nn.Module, rival: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the spec that builds `network` again, or None where it was changed since it was built."""
    spec = spec_of(network.network if isinstance(network, ConvertedNetwork) else network)
    if spec is None:
        return None
    fresh = _unallocated(spec, rival)
    same = _held(network) == _held(fresh) and _layers(network) == _layers(fresh)
    return spec if same else None


def _unallocated(spec: Mapping[str, Any], rival: Mapping[str, Any] | None) -> nn.Module:
    """Return the network that a file describes without memory for its weights."""
    with torch.device("meta"):
        return _converted(build(spec), rival)


def _layers(network: nn.Module) -> dict[str, tuple[type[nn.Module], str]]:
    """Return kind and settings of every layer by name, of a quantized one those that it had before."""
    plain = {quantized: kind for kind, quantized in QUANTIZED.items()}
    return {
        # How statistics are gathered changes nothing that is computed from them.
        name: (plain.get(type(layer), type(layer)), _MOMENTUM.sub("", layer.extra_repr()))
        for name, layer in network.named_modules()
        if not isinstance(layer, StochasticQuantizer)
    }


def _held(network: nn.Module) -> dict[str, torch.Size]:
    own = tuple(f"{name}." for name in _named_quantizers(network))
    return {name: value.shape for name, value in network.state_dict().items() if not name.startswith(own)}


def _converted(network: nn.Module, rival: Mapping[str, Any] | None) -> nn.Module:
    """Return the network changed as a rival changes it."""
    if rival is None or isinstance(network, ConvertedNetwork):
        return network
    return make_rival(rival["name"], rival["options"]).member(network, 0)


def load(path: str | Path, members: Sequence[nn.Module] | None = None) -> Ensemble:
    """Return the ensemble of a file from `save`, in evaluation mode on the CPU.

    Its `nearest` outputs equal the saved ensemble's bit for bit, and so do `sample` outputs under the same
    generator seed.

    Args:
        path: the file; or the name of a shipped model, or a folder of `squint publish`.
        members: the members' architectures, needed where they are not from `squint.models`: either the
            quantized networks or the modules that were quantized, which are then quantized in the same way.
            They are copied, not changed.

    Raises:
        squint.InputError: no whole file of squint's, a newer format, or weights of another architecture.
    """
    path = resolved(path)
    path = weights(path) if path.is_dir() else path
    tensors, metadata = read_tensors(path)
    config = _config(path, metadata)
    try:
        tensors = unpack(tensors, metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    stored: list[Any] = config["members"]
    if members is not None and not isinstance(members, Sequence | nn.ModuleList):
        raise InputTypeError(f"members is a {type(members).__name__}; allowed: a list of networks")
    if members is not None and len(members) != len(stored):
        raise InputError(f"members has {len(members)} networks; {path} holds {len(stored)}")
    built = []
    for place, entry in enumerate(stored):
        try:
            built.append(_member(place, entry, None if members is None else members[place], tensors))
        except InputError as error:
            raise InputError(f"{path}, member {place}: {error}") from None
        except (TypeError, ValueError, AttributeError, LookupError, OverflowError, RuntimeError) as error:
            # The header is what somebody wrote: any type may stand anywhere.
            raise InputError(
                f"{path}, member {place}: cannot be built from this file ({describe(error)})"
            ) from None
    kind = VotingEnsemble if config.get("votes") is True else Ensemble
    ens = kind(built, draws=config["draws"], chunk=config["chunk"]).cpu()
    _check_state(path, ens, tensors)
    for name, value in ens.state_dict(keep_vars=True).items():
        # An ensemble of doubles comes back as one; parameters stay the objects that a network may share.
        value.data = value.data.to(tensors[name].dtype)
    ens.load_state_dict(tensors)
    return ens.eval()


def _named_quantizers(member: nn.Module) -> dict[str, StochasticQuantizer]:
    return {
        name: module for name, module in member.named_modules() if isinstance(module, StochasticQuantizer)
    }


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(metadata[_KEY])
        version = config["format_version"]
        if type(version) is not int or not isinstance(config["members"], list) or not config["members"]:
            raise ValueError
    except (KeyError, ValueError, TypeError, RecursionError):
        raise InputError(f"{path} was not written by squint.save: it has no squint configuration") from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}; this squint reads {FORMAT_VERSION}: update squint"
        )
    for key in ("draws", "chunk"):
        if type(config.get(key)) is not int:
            raise InputError(f"{path}: {key} is {config.get(key)!r}; allowed: a whole number")
        check_number(f"{path}: {key}", config[key], 1, _MOST_DRAWS)
    return dict(config)


def _member(place: int, entry: Any, given: nn.Module | None, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return one member's network as the file describes it, with weights still to be loaded."""
    spec, settings, modes = entry["model"], entry["quantize"], entry["modes"]
    # Files written before there were rivals do not name one.
    rival = entry.get("rival")
    if given is not None:
        member = _converted(copy.deepcopy(given), rival)
    elif spec is None:
        raise InputError("is no network of squint.models; pass it in load(path, members=[...])")
    else:
        # Before anything of the declared size is allocated, the file must hold weights of that size.
        prefix = f"members.{place}." + ("" if settings is None else "network.")
        for name, shape in _held(_unallocated(spec, rival)).items():
            _check_shape(prefix + name, shape, tensors.get(prefix + name))
        # Building draws initial weights: torch's global generator is put back where it was.
        with torch.random.fork_rng(devices=[]):
            member = _converted(build(spec), rival)
    if settings is not None and not isinstance(member, QuantizedNetwork):
        member = quantize(member, **{**settings, "input_range": tuple(settings["input_range"])})
    own = _named_quantizers(member)
    if own.keys() != modes.keys():
        raise InputError("weights of another architecture: its quantizers lie elsewhere")
    for name, quantizer in own.items():
        rounding, gradient = modes[name]
        check_choice(f"rounding of {name}", rounding, ROUNDINGS)
        check_choice(f"gradient of {name}", gradient, GRADIENTS)
        quantizer.rounding, quantizer.gradient = rounding, gradient
    return member


def _check_state(path: Path, ens: Ensemble, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fit, naming the first difference."""
    expected = ens.state_dict()
    for name in sorted(tensors.keys() - expected.keys()):
        raise InputError(f"weights of another architecture: {name} of {path} is not part of the network")
    steps = {f"{name}.step" for name in _named_quantizers(ens)}
    for name, value in expected.items():
        stored = tensors.get(name)
        # `set_range` gives a quantizer one step for all channels.
        scalar = name in steps and stored is not None and stored.ndim == 0
        _check_shape(f"{path}: {name}", value.shape, value if scalar else stored)
        kinds = _FLOATS if value.is_floating_point() else (value.dtype,)
        if tensors[name].dtype not in kinds:
            raise InputError(f"{path}: {name} is {tensors[name].dtype}; allowed: {_words(kinds)}")
    for name, quantizer in _named_quantizers(ens).items():
        check_number(f"{path}: {name}.level_count", int(tensors[f"{name}.level_count"]), 2, 2**quantizer.bits)
        for number in ("step", "width", "offset"):
            if not bool(tensors[f"{name}.{number}"].isfinite().all()):
                raise InputError(f"{path}: {name}.{number} is not finite")


def _check_shape(name: str, expected: torch.Size, stored: Tensor | None) -> None:
    if stored is None:
        raise InputError(f"weights of another architecture: {name} is missing")
    if stored.shape != expected:
        raise InputError(
            f"weights of another architecture: {name} is {tuple(stored.shape)} in the file, "
            f"{tuple(expected)} in the network"
        )


def _words(kinds: Sequence[torch.dtype]) -> str:
    return ", ".join(str(kind).removeprefix("torch.") for kind in kinds)
