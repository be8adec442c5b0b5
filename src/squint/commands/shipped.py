"""`squint attack MODEL.onnx`: attacks on an exported file, from the run that it was exported from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from squint._checks import InputError, check_number, format_fraction, parse_fraction
from squint._files import check_output
from squint._random import derive_generator
from squint.commands.targets import Target, attacked_images, load_target
from squint.export.onnx import OnnxModel, ShippedRobustness, attack_shipped
from squint.study.progress import Bar


@dataclass(frozen=True)
class ShippedOptions:
    """Attack an exported model on the runtime itself: transfer from its ensemble, and Square from there.

    Examples:
      squint attack stochastic-nearest.onnx --transfer-from runs/digits --eps 24/255
      squint attack model.onnx --transfer-from runs/digits/weights/stochastic.safetensors --queries 2000
    """

    path: tyro.conf.Positional[Path]
    """Model (*.onnx) of squint export."""
    transfer_from: Path | None = None
    """The run, or the weights, that it was exported from."""
    system: str | None = None
    """Name of the system in that run; default: the one that the model card names."""
    eps: tuple[str, ...] = ()
    """L-infinity radii, fractions such as 5/255; default: the run's headline radius, or 5/255."""
    images: int = 100
    """Test images, from the first."""
    steps: int = 50
    """Steps of the transfer attack."""
    queries: int = 1000
    """Candidates of Square."""
    eot: int = 10
    """Draws per gradient and per candidate of a stochastic model."""
    resubmissions: int = 16
    """Predictions of every image that are scored for a stochastic model."""
    dataset: str | None = None
    """Data set whose test images are attacked; default: the run's, or digits."""
    data_dir: str | None = None
    """Folder with the data set's files; default: the run's, or the cache."""
    seed: int | None = None
    """Base of the attacks' random streams; default: the run's, or 0."""
    output: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Shipped:
    """What an exported file withstands at one radius."""

    model: str
    result: ShippedRobustness

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"model": self.model} | asdict(self.result)

    def __str__(self) -> str:
        """Return one line for people."""
        r = self.result
        return (
            f"{self.model} at eps {r.eps}: {r.worst_accuracy:.1%} under the worse of transfer "
            f"({r.transfer_accuracy:.1%}) and Square ({r.square_accuracy:.1%}); "
            f"clean {r.clean_accuracy:.1%}; n={r.n}, {r.resubmissions} predictions of each; "
            "UNTRUSTED: the runtime has no gradient"
        )


def attack_file(options: ShippedOptions, bar: Bar) -> list[Shipped]:
    """Return one result per radius.

    Raises:
        squint.InputError: the extra `onnx` is missing, no `transfer_from`, a model that does not fit it, or
            an option out of range.
    """
    check_output(options.output)
    if options.transfer_from is None:
        raise InputError(
            f"{options.path} has no gradient: name the run that it was exported from with --transfer-from RUN"
        )
    for name in ("images", "steps", "queries", "eot", "resubmissions"):
        check_number(name, getattr(options, name), 1, whole=True)
    check_number("seed", 0 if options.seed is None else options.seed, 0, whole=True)
    model = OnnxModel(options.path)
    target = _twin(model, options)
    radii = [parse_fraction("eps", eps) for eps in options.eps or (target.known.eps,)]
    test = attacked_images(target, options.dataset, options.data_dir)
    wanted = zip(model.image_shape, test.shape, strict=False)
    if len(model.image_shape) != 3 or any(isinstance(a, int) and a != b for a, b in wanted):
        raise InputError(
            f"{options.path} takes images of {model.image_shape}; those of {test.name}: {test.shape}"
        )
    check_number("images", options.images, 1, len(test), whole=True)
    images, labels = test.subset(torch.arange(options.images)).pair()
    seed = target.known.seed if options.seed is None else options.seed
    bar.start(f"attack {options.path.name}", len(radii))
    found = []
    for done, eps in enumerate(radii, 1):
        result = attack_shipped(
            model,
            target.ens,
            images,
            labels,
            eps=eps,
            steps=options.steps,
            queries=options.queries,
            eot=options.eot,
            resubmissions=options.resubmissions,
            generator=derive_generator(seed, "shipped", target.name, format_fraction(eps)),
        )
        found.append(Shipped(options.path.name, result))
        bar.move(done)
    return found


def _twin(model: OnnxModel, options: ShippedOptions) -> Target:
    """Return the ensemble that the model was exported from, as far as its card tells."""
    assert options.transfer_from is not None
    recipe = model.card.get("recipe")
    named = recipe.get("system") if isinstance(recipe, dict) else None
    if None not in (named, options.system) and options.system != named:
        raise InputError(
            f"system is {options.system!r}; allowed for {options.path}: {named!r}, which it is of"
        )
    system = options.system or (named if options.transfer_from.is_dir() else None)
    target = load_target(options.transfer_from, system)
    if len(target.ens.members) != model.card.get("members"):
        raise InputError(
            f"{options.path} has {model.card.get('members')} members, {target.file} has "
            f"{len(target.ens.members)}: it was not exported from there"
        )
    return target
