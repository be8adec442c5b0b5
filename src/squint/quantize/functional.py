"""The mathematics of the stochastic quantizer, in units of the step: u = (x - low)/step, W = w/step.

    level  K = sum_{j=1}^{L-1} 1[u + W n > j - 1/2],     y = low + step * K

with symmetric noise n of variance 1/12 (CDF F, density p). With z_j = (u - (j - 1/2))/W:

    E[K] = sum F(z_j)      Var[K] = sum (2j-1) F(z_j) - (sum F(z_j))^2      dE[K]/du = (1/W) sum p(z_j)

Everything here is a pure function of tensors; nothing draws noise or keeps state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISES = ("uniform", "logistic", "gaussian")
GRADIENTS = ("expected", "straight_through", "identity")

_TWO_PI = 2 * math.pi
_ROOT_12 = math.sqrt(12)
_ULP = 2.0**-23
FINE_LEVELS = 64
"""Above it float32 rounds u as coarsely as 16-bit noise: noise of 13 bits keeps clear of its own ends."""


def cdf(z: Tensor, noise: str) -> Tensor:
    """Return F(z) of the named noise, each scaled to variance 1/12."""
    if noise == "uniform":
        return (z + 0.5).clamp(0, 1)
    return torch.sigmoid(_TWO_PI * z) if noise == "logistic" else torch.special.ndtr(_ROOT_12 * z)


def density(z: Tensor, noise: str) -> Tensor:
    """Return p(z) of the named noise; uniform noise counts both ends of [-1/2, 1/2]."""
    if noise == "uniform":
        return (z.abs() <= 0.5).to(z.dtype)
    # Exponents stop short of subnormal results: nothing depends on those, and CPUs take them very slowly.
    least = math.log(torch.finfo(z.dtype).tiny) + 4
    if noise == "logistic":
        s = torch.sigmoid((_TWO_PI * z).clamp(least, -least))
        return _TWO_PI * s * (1 - s)
    return (_ROOT_12 / math.sqrt(2 * math.pi)) * torch.exp((-6 * z * z).clamp_min(least))


def quantile(u: Tensor, noise: str) -> Tensor:
    """Return the noise n with F(n) = u, for u strictly inside (0, 1)."""
    if noise == "uniform":
        return u - 0.5
    return torch.logit(u) / _TWO_PI if noise == "logistic" else torch.special.ndtri(u) / _ROOT_12


def expected_level(u: Tensor, width: float, levels: int, noise: str = "uniform") -> Tensor:
    """Return E[K] = sum_j F(z_j), in closed form. Cost: `levels - 1` terms per element."""
    return cdf(_all_thresholds(u, width, levels), noise).sum(-1)


def level_variance(u: Tensor, width: float, levels: int, noise: str = "uniform") -> Tensor:
    """Return Var[K] = sum_j (2j - 1) F(z_j) - (sum_j F(z_j))^2, in closed form."""
    f = cdf(_all_thresholds(u, width, levels), noise)
    odd = torch.arange(1, 2 * levels - 2, 2, dtype=f.dtype, device=f.device)
    return (f * odd).sum(-1) - f.sum(-1).square()


def _all_thresholds(u: Tensor, width: float, levels: int) -> Tensor:
    j = torch.arange(1, levels, dtype=u.dtype, device=u.device)
    return (u[..., None] - (j - 0.5)) / width


def tolerance(levels: int) -> float:
    """Return how far rounding may carry a u that stands for a grid point: four float32 ulps of the largest.

    In float64 too, since the step itself is a float32 number.
    """
    return 4 * levels * _ULP


def inside(u: Tensor, levels: int) -> Tensor:
    """Return whether u lies on the closed range [0, levels - 1], up to float rounding of u."""
    half = (levels - 1) / 2
    return (u - half).abs() <= half + tolerance(levels)


def slope(u: Tensor, width: Tensor | float, levels: int, noise: str) -> tuple[Tensor, Tensor]:
    """Return dE[K]/du = (1/W) sum p(z_j) and the moment (1/W) sum p(z_j) (j - 1/2).

    At kinks of uniform noise the slope is the inner one-sided derivative: the limit from the side of the
    middle of the range. Smooth noise sums the thresholds whose density is above float precision.

    Args:
        u: positions in steps, any shape.
        width: noise width in steps, above 0.
        levels: number of levels L.
        noise: name of the noise.
    """
    if noise == "uniform":
        return _uniform_slope(u, width, levels)
    w = float(width.detach()) if isinstance(width, Tensor) else width
    width = width.to(u.dtype) if isinstance(width, Tensor) and width.requires_grad else w
    # Tails fall as exp(-2 pi d/W) and exp(-6 d^2/W^2): beyond this reach a term is below float rounding.
    digits = -math.log(torch.finfo(u.dtype).eps)
    reach = digits / _TWO_PI if noise == "logistic" else math.sqrt(digits / 6)
    around = math.ceil(reach * w) + 1
    count = min(2 * around + 1, levels - 1)
    # The lowest threshold of each window; windows at the ends lie within the range, so no term needs a mask.
    first: Tensor | float = 1.0
    if count < levels - 1:
        first = (u.detach() + 0.5).round().sub_(around).clamp_(1, levels - count)
    t = (u - (first - 0.5)) / width
    total, rest = torch.zeros_like(u), torch.zeros_like(u)
    for i in range(count):
        p = density(t - i / width, noise)
        total, rest = total + p, rest + p * i
    return total / width, ((first - 0.5) * total + rest) / width


def _uniform_slope(u: Tensor, width: Tensor | float, levels: int) -> tuple[Tensor, Tensor]:
    top = levels - 1
    upper = u > top / 2
    # The upper half mirrors the lower one, so that "inner" is the limit from above in both.
    m = torch.where(upper, top - u, u) + (0.5 + tolerance(levels))
    first = (m - width / 2).floor().clamp(0, top)
    last = (m + width / 2).floor().clamp(0, top)
    first, last = torch.where(upper, top - last, first), torch.where(upper, top - first, last)
    return (last - first) / width, (last * last - first * first) / (2 * width)


def expected_gradients(
    x: Tensor, low: float, step: float, width: float, levels: int, noise: str = "uniform"
) -> dict[str, Tensor]:
    """Return the derivatives of E[y] = low + step * E[K] at fixed absolute width w = step * `width`.

    Returns:
        `x`, `low`, `step` (at fixed w), `w`, and `step_tied` (w tied to the step), each shaped like `x`.
    """
    u = (x - low) / step
    mean = expected_level(u, width, levels, noise)
    d, moment = slope(u, width, levels, noise)
    by_w = -(u * d - moment) / width
    return {
        "x": d,
        "low": 1 - d,
        "step": mean - moment,
        "w": by_w,
        "step_tied": mean - moment + by_w * width,
    }
