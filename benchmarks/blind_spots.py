"""What gradients explain of random steps, honest ones and such as hide pixels or have wrong signs.

`python -m benchmarks.blind_spots --weights FILE... --data-dir DIR --output FILE.json` looks at weights for
CIFAR-10 as preflight does, and at the same functions with a share of the pixels hidden from the gradient,
with signs there that are wrong and too small to be seen elsewhere, or reversed at their size.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

import squint
from squint import data as D
from squint._checks import HasMemberLogits
from squint._files import write_json
from squint.evaluation.blind_spots import BLIND_DRAWS, BLIND_IMAGES, blind_spots, influence, unexplained_steps
from squint.evaluation.frozen import frozen

Kind = Literal["hidden", "tiny", "reversed"]
CASES: dict[str, tuple[float, Kind]] = {
    "honest": (0.0, "hidden"),
    "10 % hidden": (0.1, "hidden"),
    "30 % hidden": (0.3, "hidden"),
    "50 % hidden": (0.5, "hidden"),
    "50 % of wrong sign": (0.5, "tiny"),
    "20 % reversed": (0.2, "reversed"),
    "33 % reversed": (1 / 3, "reversed"),
}
"""Shares of the pixels of which gradients do not know, or not rightly."""


def weights_of(hidden: Tensor, kind: Kind, signs: Tensor) -> Tensor:
    """Return the factors of the gradient: 0 where `hidden` is 1, or tiny with these signs, or reversed.

    A reversed gradient is shortened throughout, so that along its own sign it promises what it gives.
    """
    if kind == "reversed":
        return (1 - 2 * hidden) * (1 - 2 * hidden.mean())
    return 1 - hidden + (1e-6 * signs * hidden if kind == "tiny" else 0.0)


def with_gradient(x: Tensor, weights: Tensor) -> Tensor:
    """Return the images bit for bit, through which a gradient passes times these weights."""
    shown = weights * x
    return x.detach() + (shown - shown.detach())


class Hiding(nn.Module):
    """The same function of images (n, 3, 32, 32), whose gradients are wrong at some pixels, drawn once."""

    def __init__(self, ens: HasMemberLogits, draws: int, share: float, kind: Kind) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.ens, self.draws = ens, draws
        hidden = (torch.rand(3, 32, 32, generator=generator) < share).float()
        self.weights = weights_of(hidden, kind, torch.randint(2, hidden.shape, generator=generator) * 2.0 - 1)

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return logits (draws, members, n, classes)."""
        shown = with_gradient(x, self.weights)
        return self.ens.member_logits(shown, draws, generator=generator, stratified=stratified)


def main() -> None:
    """Look, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--eps", type=Fraction, nargs="+", default=[Fraction(5, 255)])
    parser.add_argument("--cases", choices=list(CASES), nargs="+", default=list(CASES))
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    test = D.load("cifar10", arguments.data_dir).test
    x, y = test.float_images()[:BLIND_IMAGES], test.labels[:BLIND_IMAGES]
    rows: list[dict[str, Any]] = []
    for path, eps, name, seed in itertools.product(
        arguments.weights, arguments.eps, arguments.cases, range(arguments.seeds)
    ):
        loaded = squint.load(path).eval()
        model = Hiding(cast(HasMemberLogits, frozen(loaded)), loaded.draws, *CASES[name])
        found = influence(model, x, y, float(eps), seed=seed)
        flags = [each.kind for each in (blind_spots(found), unexplained_steps(found)) if each is not None]
        about = {
            "weights": f"{path.parent.parent.name}/{path.stem}",
            "case": name,
            "eps": float(eps),
            "seed": seed,
        }
        rows.append({**about, **asdict(found), "flags": flags})
        effects = ", ".join(f"{effect:.2f}" for effect in found.effects)
        explained = ", ".join(f"{share:.0%}" for share in found.explained)
        print(
            f"{about['weights']}, {name}, eps {255 * eps}/255, seed {seed}: effects {effects}; explained "
            f"{explained} ({found.others_explained:.0%} elsewhere); steadiness {found.steadiness:.2f}; "
            f"{', '.join(flags) or 'no flag'}",
            flush=True,
        )
    write_json(arguments.output, {"n": BLIND_IMAGES, "draws": BLIND_DRAWS, "rows": rows})


if __name__ == "__main__":
    main()
