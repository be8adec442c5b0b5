"""PGD and EOT-PGD against torchattacks on the same model, images and number of gradients."""

from __future__ import annotations

import torch
import torchattacks

from benchmarks.timing import medians, show
from squint import Ensemble, attacks, calibrate, models, quantize

IMAGES = 64
STEPS = 10
EOT = 4
EPS = 5 / 255


def main() -> None:
    """Print the table."""
    x = torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(IMAGES) % 10
    plain = models.resnet8().eval()
    net = quantize(models.resnet8(), 4, 4, 2, activation_width=0.0)
    calibrate(net, x)
    ens = Ensemble([net], draws=1).eval()
    pgd = torchattacks.PGD(plain, eps=EPS, alpha=EPS / 4, steps=STEPS)
    eot = torchattacks.EOTPGD(ens, eps=EPS, alpha=EPS / 4, steps=STEPS, eot_iter=EOT)
    ms = medians(
        {
            "pgd": lambda: attacks.pgd(plain, x, y, eps=EPS, steps=STEPS),
            "torchattacks pgd": lambda: pgd(x, y),
            "eot": lambda: attacks.pgd(ens, x, y, eps=EPS, steps=STEPS, eot=EOT),
            "torchattacks eot": lambda: eot(x, y),
        },
        repeats=5,
        warmup=1,
    )
    show(
        f"attack, ResNet-8, {IMAGES} images, {STEPS} steps, {torch.get_num_threads()} threads",
        "ratio at most 1.0 per gradient",
        [
            ("pgd, full precision", ms["pgd"], "torchattacks PGD", ms["torchattacks pgd"]),
            (f"pgd, eot {EOT}, stochastic", ms["eot"], "torchattacks EOTPGD", ms["torchattacks eot"]),
        ],
    )
    for name, value in ms.items():
        print(f"  {name:<24} {IMAGES / value * 1e3:8.0f} images per second")


if __name__ == "__main__":
    main()
