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
from squint.evaluation.blind_spots import BLIND_IMAGES, blind_spots, influence
from squint.evaluation.frozen import frozen

EPS = 5 / 255
HIDDEN = {
    "honest": 0.0,
    "30 % hidden": 0.3,
    "50 % hidden": 0.5,
    "10 % hidden": 0.1,
    "50 % of wrong sign": 0.5,
}
WRONG = "50 % of wrong sign"
"""The case in which hidden pixels have a gradient of random sign and a millionth of its size."""


class Hiding(nn.Module):
    """The same function of images (n, 3, 32, 32), whose gradients do not know of some pixels, drawn once."""

    def __init__(self, ens: HasMemberLogits, draws: int, share: float, wrong: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.ens, self.draws, self.wrong = ens, draws, wrong
        self.hidden = (torch.rand(3, 32, 32, generator=generator) < share).float()
        self.signs = torch.randint(2, (3, 32, 32), generator=generator) * 2.0 - 1

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return logits (draws, members, n, classes)."""
        shown = x * (1 - self.hidden) + (x * self.hidden).detach()
        if self.wrong:
            other = 1e-6 * self.signs * self.hidden * x
            shown = shown + other - other.detach()
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
        for name, share in HIDDEN.items():
            hiding = Hiding(ens, loaded.draws, share, name == WRONG)
            model = hiding if share else ens
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
    write_json(arguments.output, {"eps": "5/255", "n": BLIND_IMAGES, "rows": rows})


if __name__ == "__main__":
    main()
