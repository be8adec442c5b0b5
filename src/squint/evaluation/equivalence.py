r"""Does a change help, hurt or make no difference? Two one-sided tests on paired differences.

With a margin δ and the interval of confidence 1 − 2α for the mean difference (90 % at α = 0.05):

| interval | verdict | what was rejected at level α |
|---|---|---|
| above +δ | helps | a gain of δ or less |
| below −δ | hurts | a loss of δ or less |
| inside (−δ, +δ) | equivalent | a difference of δ or more, in both directions (Schuirmann 1987) |
| anything else | undecided | nothing |

A true difference of at most δ is called helpful, and one of at least δ equivalent, with a chance of at most α
(to the accuracy of Student's t), and more data never turn one right verdict into another. A difference that
is real but smaller than δ is equivalent; `above_zero` says that it is real.

Few images that happen to agree are no evidence of equivalence, though their variance is zero: outcomes lie in
[−1, 1], so one won and one lost image (a half each) are added, as Agresti and Min (2005) do for paired
proportions. At 2,000 images this changes nothing that is printed; at 20 it forbids a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from scipy import special
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_number

MARGIN = 0.02
ALPHA = 0.05


@dataclass(frozen=True)
class Equivalence:
    """A verdict on paired differences (with the change minus without it), as fractions.

    Attributes:
        verdict: "helps", "hurts", "equivalent" or "undecided"; see this module.
        mean: mean difference.
        interval: confidence 1 − 2·alpha, on which the verdict rests.
        ci95: 95 % interval.
        margin: δ.
        alpha: level of each one-sided test.
        p_lower: p-value against a mean of −δ or less.
        p_upper: p-value against a mean of +δ or more.
        images: paired images; 0 where only means of training seeds were given.
        seeds: paired training seeds; 1 says that training is not sampled: the verdict is on these weights.
        degrees: degrees of freedom of Student's t.
    """

    verdict: str
    mean: float
    interval: tuple[float, float]
    ci95: tuple[float, float]
    margin: float
    alpha: float
    p_lower: float
    p_upper: float
    images: int
    seeds: int
    degrees: float

    @property
    def p(self) -> float:
        """p-value of equivalence: the larger of the two one-sided ones."""
        return max(self.p_lower, self.p_upper)

    @property
    def above_zero(self) -> bool | None:
        """Whether the 95 % interval lies above zero (True), below it (False) or holds it (None)."""
        if self.ci95[0] > 0:
            return True
        return False if self.ci95[1] < 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {
            "p": self.p,
            "above_zero": self.above_zero,
            "interval": list(self.interval),
            "ci95": list(self.ci95),
        }

    def __str__(self) -> str:
        """Return one line, in percentage points."""
        low, high = self.interval
        return (
            f"{self.verdict}: {100 * self.mean:+.1f} points, {100 * (1 - 2 * self.alpha):.0f} % interval "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] against ±{100 * self.margin:.1f}, "
            f"{self.images or 'no'} paired images, {self.seeds} paired seeds"
        )


def equivalence(differences: Tensor, margin: float = MARGIN, *, alpha: float = ALPHA) -> Equivalence:
    """Return the verdict on per-image differences, over training seeds too where there are several.

    With seeds the variance of the mean is taken as the variance of the seeds' means over their number plus
    that of the images' means over theirs, with Satterthwaite's degrees of freedom (1946): it covers other
    seeds and other images at once, and is a little too large, by the interaction that both terms hold.

    Args:
        differences: (images,) or (seeds, images), each in [−1, 1]: correctness with the change minus without
            it, of the same image (and in a row with the same seed).
        margin: δ, a fraction above 0.
        alpha: level of each one-sided test, in (0, 0.5).

    Raises:
        InputTypeError: no tensor; InputError: another shape, no images, values outside [−1, 1].
    """
    if not isinstance(differences, Tensor):
        raise InputTypeError(f"differences must be a torch.Tensor, got {type(differences).__name__}")
    if differences.ndim not in (1, 2) or not differences.numel():
        raise InputError(
            f"differences has shape {tuple(differences.shape)}; allowed: (images,) or (seeds, images)"
        )
    values = differences.detach().double().cpu()
    values = values[None] if values.ndim == 1 else values
    if not bool((values.abs() <= 1).all()):
        raise InputError("differences hold values outside [-1, 1] or NaN; allowed: differences of accuracies")
    seeds, images = values.shape
    per_image = values.mean(0)
    mean = float(per_image.sum()) / (images + 2)
    parts = [_Part(_image_variance(float(per_image.square().sum()), mean, images), max(images - 1, 1))]
    if seeds > 1:
        parts.append(_Part(float(values.mean(1).var(correction=1)) / seeds, seeds - 1))
    return _verdict(mean, parts, margin, alpha, images=images, seeds=seeds)


def equivalence_of_seeds(
    differences: Sequence[float], images: int, margin: float = MARGIN, *, alpha: float = ALPHA
) -> Equivalence:
    """Return the verdict on differences of accuracy over paired training seeds alone, by Student's t.

    For runs that kept no outcomes per image. It covers other seeds, not other images, and wants five seeds or
    more to say anything; its standard error is never taken below that of `images` images that all agree.

    Args:
        differences: one per seed, two or more, each in [−1, 1].
        images: images behind every accuracy.
        margin: δ, a fraction above 0.
        alpha: level of each one-sided test, in (0, 0.5).

    Raises:
        InputError: fewer than two seeds, or a value that is not allowed.
    """
    if len(differences) < 2:
        raise InputError(f"differences holds {len(differences)} seeds; allowed: 2 or more")
    values = [check_number("differences", value, -1.0, 1.0) for value in differences]
    check_number("images", images, 1, whole=True)
    seeds = len(values)
    mean = math.fsum(values) / seeds
    spread = math.fsum((value - mean) ** 2 for value in values) / (seeds - 1) / seeds
    part = _Part(max(spread, _image_variance(0.0, 0.0, images)), seeds - 1)
    return _verdict(mean, [part], margin, alpha, images=0, seeds=seeds)


class _Part(NamedTuple):
    """A part of the variance of the mean difference, and the degrees of freedom it is known with."""

    variance: float
    degrees: float


def _image_variance(squares: float, mean: float, images: int) -> float:
    """Return the variance of a mean over images, one won and one lost image (a half each) added to them."""
    return ((squares + 1) / (images + 2) - mean**2) / (images + 2)


def _verdict(
    mean: float, parts: Sequence[_Part], margin: float, alpha: float, *, images: int, seeds: int
) -> Equivalence:
    check_number("margin", margin, 0.0, 1.0, open_low=True)
    check_number("alpha", alpha, 0.0, 0.5, open_low=True)
    variance = sum(part.variance for part in parts)
    degrees = variance**2 / sum(part.variance**2 / part.degrees for part in parts)
    error = math.sqrt(variance)

    def around(tail: float) -> tuple[float, float]:
        half = float(special.stdtrit(degrees, 1 - tail)) * error
        return mean - half, mean + half

    low, high = around(alpha)
    if low > margin:
        verdict = "helps"
    elif high < -margin:
        verdict = "hurts"
    elif low > -margin and high < margin:
        verdict = "equivalent"
    else:
        verdict = "undecided"
    return Equivalence(
        verdict=verdict,
        mean=mean,
        interval=(low, high),
        ci95=around(0.025),
        margin=margin,
        alpha=alpha,
        p_lower=float(special.stdtr(degrees, -(mean + margin) / error)),
        p_upper=float(special.stdtr(degrees, (mean - margin) / error)),
        images=images,
        seeds=seeds,
        degrees=degrees,
    )
