"""Measure every estimator's bias on cases with a known answer and write the table into docs/information.md.

    python benchmarks/information_bias.py [--repeats 30] [--seed 0] [--docs docs/information.md]

Every entry is the mean over repeats of estimate minus answer, in nats, with its standard error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from squint import information as info

SIZES = (32, 64, 128, 256, 512, 1024)
DRAWS = (1, 2, 4, 8, 16, 64)
BEGIN, END = "<!-- bias table: begin -->", "<!-- bias table: end -->"
RHO, ERROR = 0.8, 0.1
SHANNON = -0.5 * math.log(1 - RHO**2)

Estimate = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table: an estimator, a population and the answer for it."""

    estimator: str
    population: str
    truth: float
    estimate: Estimate


def gaussians(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, n, d, generator=generator)
    return a, RHO * a + math.sqrt(1 - RHO**2) * b


def labels(n: int, classes: int, keep: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two hard labels, uniform; the second is the first with probability `keep`, else uniform."""
    first, other = torch.randint(classes, (2, n), generator=generator)
    second = torch.where(torch.rand(n, generator=generator) < keep, first, other)
    return one_hot(first, classes).float(), one_hot(second, classes).float()


def labels_truth(classes: int, keep: float) -> float:
    table = (1 - keep) / classes**2 + keep / classes * torch.eye(classes, dtype=torch.float64)
    return float(info.table_mutual_information(table))


def order_two_truth(d: int) -> float:
    """Return the limit of order-2 information of Gaussians at the median bandwidth, as n grows.

    |x − x'|² is 2·chi-squared of d degrees, E k² = (1 + 4t)^(−d/2) with t = 1/σ², and the joint has
    ((1 + 4t)² − (4tρ)²)^(−d/2).
    """
    half = torch.tensor(0.5, dtype=torch.float64)
    low, high = torch.tensor([0.0, 10.0 * d], dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        below = torch.special.gammainc(torch.tensor(d / 2, dtype=torch.float64), middle / 2) < half
        low, high = (middle, high) if below else (low, middle)
    t = 1 / (2 * float(low))
    return -0.5 * d * math.log(1 - (4 * t * RHO / (1 + 4 * t)) ** 2)


def conditional_case(n: int, generator: torch.Generator) -> Tensor:
    y = torch.randint(10, (n,), generator=generator)
    a, b = gaussians(n, 8, generator)
    shift = 20.0 * y.unsqueeze(1)
    return info.renyi_conditional_mutual_information(a + shift, b + shift, y)


def density_ratio(z1: Tensor, z2: Tensor) -> Tensor:
    return conditional_density(z1, z2) + z2.square().sum(-1) / 2


def conditional_density(z1: Tensor, z2: Tensor) -> Tensor:
    return -((z2.unsqueeze(0) - RHO * z1.unsqueeze(1)) ** 2).sum(-1) / (2 * (1 - RHO**2))


def averaged_table(n: int, generator: torch.Generator) -> Tensor:
    table = info.JointTable(10, decay=0.9)
    for _ in range(30):
        value: Tensor = table(*labels(n, 10, 0.7, generator))
    return value


def gaussian_case(name: str, d: int, function: Callable[[Tensor, Tensor], Tensor], truth: float) -> Case:
    population = f"Gaussian pair, {d} dim., ρ = {RHO}"
    return Case(name, population, truth, lambda n, generator: function(*gaussians(n, d, generator)))


def label_case(name: str, classes: int, keep: float, function: Callable[[Tensor, Tensor], Tensor]) -> Case:
    population = f"{classes} hard labels, {'independent' if keep == 0 else f'{keep:.0%} kept'}"
    return Case(
        name,
        population,
        labels_truth(classes, keep),
        lambda n, generator: function(*labels(n, classes, keep, generator)),
    )


def cases() -> list[Case]:
    def corrected(p: Tensor, q: Tensor) -> Tensor:
        return info.soft_label_mutual_information(p, q, correction="miller_madow")

    def plain_gaussian(a: Tensor, b: Tensor) -> Tensor:
        return info.gaussian_mutual_information(a, b, correction="none")

    channel = 1 - 2 * ERROR
    plug_in = info.soft_label_mutual_information
    return [
        gaussian_case("Rényi α = 2", 1, info.renyi_mutual_information, order_two_truth(1)),
        gaussian_case("Rényi α = 2", 8, info.renyi_mutual_information, order_two_truth(8)),
        gaussian_case("Rényi α = 2", 64, info.renyi_mutual_information, order_two_truth(64)),
        Case("Rényi α = 2 given Y", "the 8 dim. pair in 10 classes", order_two_truth(8), conditional_case),
        label_case("plug-in", 2, channel, plug_in),
        label_case("plug-in, Miller–Madow", 2, channel, corrected),
        label_case("plug-in", 10, 0.7, plug_in),
        label_case("plug-in, Miller–Madow", 10, 0.7, corrected),
        Case("plug-in, `JointTable` 0.9", "10 hard labels, 70% kept", labels_truth(10, 0.7), averaged_table),
        label_case("plug-in", 10, 0.0, plug_in),
        label_case("plug-in, Miller–Madow", 10, 0.0, corrected),
        gaussian_case("Gaussian, plug-in", 8, plain_gaussian, 8 * SHANNON),
        gaussian_case("Gaussian, Wishart", 8, info.gaussian_mutual_information, 8 * SHANNON),
        gaussian_case("KSG 1, k = 3", 1, info.ksg, SHANNON),
        gaussian_case("KSG 2, k = 3", 1, lambda a, b: info.ksg(a, b, variant=2), SHANNON),
        gaussian_case("KSG 1, k = 3", 8, info.ksg, 8 * SHANNON),
        gaussian_case("InfoNCE, true ratio", 1, lambda a, b: info.infonce(a, b, density_ratio), SHANNON),
        gaussian_case("InfoNCE, true ratio", 8, lambda a, b: info.infonce(a, b, density_ratio), 8 * SHANNON),
        gaussian_case(
            "CLUB, true conditional", 1, lambda a, b: info.club(a, b, conditional_density), SHANNON
        ),
    ]


def predictive(part: str) -> Case:
    """Return the case of members whose draws and means differ: p is e or 1 − e for draws, members alike."""
    spread = math.log(2) + ERROR * math.log(ERROR) + (1 - ERROR) * math.log(1 - ERROR)
    truth = {"across_draws": spread, "across_members": 0.0, "total": spread}[part]

    def estimate(draws: int, generator: torch.Generator) -> Tensor:
        flip = torch.randint(2, (draws, 3, 64), generator=generator).float()
        p = ERROR + (1 - 2 * ERROR) * flip
        result = info.predictive_information(torch.stack([p, 1 - p], -1).log())
        value: Tensor = getattr(result, part).mean()
        return value

    return Case(f"predictive, `{part}`", "3 members, p = 0.1 or 0.9 per draw", truth, estimate)


def measure(rows: list[Case], sizes: tuple[int, ...], repeats: int, seed: int, label: str) -> list[str]:
    """Return the lines of a markdown table of bias and standard error per size."""
    lines = [f"| estimator | population | answer | {' | '.join(f'{label} {n}' for n in sizes)} |"]
    lines.append("|" + "---|" * (3 + len(sizes)))
    for index, case in enumerate(rows):
        cells = []
        for n in sizes:
            generator = torch.Generator().manual_seed(seed + 1000 * index + n)
            values = torch.tensor([float(case.estimate(n, generator)) for _ in range(repeats)])
            values = values.double() - case.truth
            cells.append(f"{float(values.mean()):+.3f} ± {float(values.std()) / math.sqrt(repeats):.3f}")
        lines.append(f"| {case.estimator} | {case.population} | {case.truth:.3f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, default=Path("docs/information.md"))
    arguments = parser.parse_args()
    parts = [predictive(part) for part in ("across_draws", "across_members", "total")]
    lines = [
        f"Mean of estimate − answer over {arguments.repeats} repeats ± its standard error, in nats; "
        f"seed {arguments.seed}, float32. Regenerated by `python benchmarks/information_bias.py`.",
        "",
        *measure(cases(), SIZES, arguments.repeats, arguments.seed, "n ="),
        "",
        "The same for the number of draws:",
        "",
        *measure(parts, DRAWS, arguments.repeats, arguments.seed, "S ="),
    ]
    table = "\n".join(lines)
    print(table)
    text = arguments.docs.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    arguments.docs.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
