"""What the stochastic quantizer costs beside torch's own fake quantization, side by side in one run.

Run from the repository root: `python -m benchmarks.quantizer`. Times are the least of many repetitions, the
two sides taking turns, so that other load on the machine hits both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

import squint._random
from squint.quantize import StochasticQuantizer

SHAPES = ((64, 16, 32, 32), (128, 64, 16, 16))
CASES = (("uniform", False), ("uniform", True), ("logistic", False), ("gaussian", False))
BITS = 4
REPEATS = 30


def rows(repeats: int = REPEATS) -> list[tuple[str, float, float]]:
    """Return (name, squint milliseconds, torch milliseconds) for every shape, noise and direction."""
    found = []
    for shape in SHAPES:
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for noise, learns in CASES:
            ours = StochasticQuantizer(BITS, noise=noise, learn_range=learns)
            theirs = _learnable() if learns else _fixed
            label = f"{'x'.join(map(str, shape))} {noise}{', learn_range' if learns else ''}"
            for backward in (False, True):
                name = f"{label}: forward{' + backward' if backward else ''}"
                mine = _call(ours, x, grad, backward)
                other = _call(theirs, x, grad, backward)
                found.append((name, *_least(mine, other, repeats)))
    return found


def _fixed(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 1 / (2**BITS - 1), 0, 0, 2**BITS - 1)


def _learnable() -> Callable[[Tensor], Tensor]:
    scale = torch.tensor([1 / (2**BITS - 1)], requires_grad=True)
    zero = torch.tensor([0.0], requires_grad=True)

    def quantize(x: Tensor) -> Tensor:
        y: Tensor = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, 0, 2**BITS - 1, 1.0)
        return y

    return quantize


def _call(
    function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, backward: bool
) -> Callable[[], None]:
    def forward() -> None:
        with torch.no_grad():
            function(x)

    leaf = x.clone().requires_grad_()

    def both() -> None:
        torch.autograd.backward(function(leaf), grad)
        leaf.grad = None

    return both if backward else forward


def _least(a: Callable[[], None], b: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Return the least times of both in milliseconds, measured in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for i, function in enumerate((a, b)):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] * 1e3, best[1] * 1e3


def main() -> None:
    """Print squint beside torch, and the ratio."""
    squint._random.seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {BITS} bits, least of {REPEATS}")
    print(f"{'':62}{'squint ms':>10}{'torch ms':>10}{'ratio':>8}")
    for name, ours, theirs in rows():
        print(f"{name:62}{ours:10.3f}{theirs:10.3f}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
