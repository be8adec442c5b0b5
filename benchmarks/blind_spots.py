"""What gradients explain of an image's least weighted elements, honest ones and such as hide pixels.

`python -m benchmarks.blind_spots --weights FILE... --data-dir DIR --output FILE.json` looks at weights for
CIFAR-10 as preflight does, and at the same functions with a share of the pixels hidden from the gradient, or
with signs there that are wrong and too small to be seen elsewhere.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import squint
from squint import data as D
from squint._checks import HasMemberLogits
from squint._files import write_json
from squint.evaluation.blind_spots import BLIND_DRAWS, BLIND_IMAGES, blind_spots, influence
from squint.evaluation.frozen import frozen

EPS = 5 / 255
CASES = {
    "honest": (0.0, False),
    "10 % hidden": (0.1, False),
    "30 % hidden": (0.3, False),
    "50 % hidden": (0.5, False),
    "50 % of wrong sign": (0.5, True),
}
"""Shares of the pixels of which gradients do not know, or have random signs of a millionth of the size."""


def hidden_from_gradients(x: Tensor, hidden: Tensor, signs: Tensor | None = None) -> Tensor:
    """Return images (n, ...) whose gradient is missing where `hidden` is 1, or tiny with these signs."""
    shown = x * (1 - hidden) + (x * hidden).detach()
    if signs is None:
        return shown
    wrong = 1e-6 * signs * hidden * x
    return shown + wrong - wrong.detach()


class Hiding(nn.Module):
    """The same function of images (n, 3, 32, 32), whose gradients do not know of some pixels, drawn once."""

    def __init__(self, ens: HasMemberLogits, draws: int, share: float, wrong: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.ens, self.draws = ens, draws
        self.hidden = (torch.rand(3, 32, 32, generator=generator) < share).float()
        self.signs = torch.randint(2, (3, 32, 32), generator=generator) * 2.0 - 1 if wrong else None

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return logits (draws, members, n, classes)."""
        shown = hidden_from_gradients(x, self.hidden, self.signs)
        return self.ens.member_logits(shown, draws, generator=generator, stratified=stratified)


def main() -> None:
    """Look, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    test = D.load("cifar10", arguments.data_dir).test
    x, y = test.float_images()[:BLIND_IMAGES], test.labels[:BLIND_IMAGES]
    rows: list[dict[str, Any]] = []
    for path in arguments.weights:
        loaded = squint.load(path).eval()
        ens = cast(HasMemberLogits, frozen(loaded))
        called = f"{path.parent.parent.name}/{path.stem}"
        for name, case in CASES.items():
            model = Hiding(ens, loaded.draws, *case)
            for seed in range(arguments.seeds):
                found = influence(model, x, y, EPS, seed=seed)
                flagged = blind_spots(found) is not None
                rows.append(
                    {"weights": called, "case": name, "seed": seed, **asdict(found), "flagged": flagged}
                )
                explained = ", ".join(f"{share:.0%}" for share in found.explained)
                effects = ", ".join(f"{effect:.2f}" for effect in found.effects)
                print(
                    f"{called}, {name}, seed {seed}: effects {effects}; explained "
                    f"{explained} ({found.others_explained:.0%} elsewhere){'; flagged' if flagged else ''}",
                    flush=True,
                )
    write_json(arguments.output, {"eps": "5/255", "n": BLIND_IMAGES, "draws": BLIND_DRAWS, "rows": rows})


if __name__ == "__main__":
    main()
