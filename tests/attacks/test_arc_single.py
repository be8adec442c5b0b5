"""ARC under the single-draw rule: what is accepted is the expected 0-1 accuracy of one draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from squint import _random, attacks
from squint._checks import InputError
from squint.attacks.arc import single_draw_error
from squint.attacks.objectives import margin
from tests.attacks.models import NoisyLinear, interior_images


class LoudMinority:
    """Two classes, one pixel v: three draws in four have the logit gap (v − 0.5)/2, the fourth 40·(0.45 − v).

    For label 0 the single draws err most above 0.5, by three quarters, though hardly; the mean probability,
    which the loud fourth rules, errs at 0.4 alone.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return self.member_logits(x, 1)[0, 0]

    def member_logits(
        self, x: Tensor, draws: int = 4, *, generator: torch.Generator | None = None, stratified: bool = False
    ) -> Tensor:
        del generator, stratified
        pixel = x.flatten(1)[:, 0]
        quiet, loud = (pixel - 0.5) / 2, 40 * (0.45 - pixel)
        gaps = torch.stack([loud if draw % 4 == 3 else quiet for draw in range(draws)])
        return torch.stack([-gaps, gaps], -1).unsqueeze(1) / 2


def test_single_draw_error_counts_draws_not_members() -> None:
    # Two draws of two members: the first errs on average of its members, the second does not.
    p = torch.tensor([[[0.9, 0.1], [0.0, 1.0]], [[0.9, 0.1], [0.3, 0.7]]], dtype=torch.float64)
    logits = p.clamp_min(1e-12).log().unsqueeze(2)
    assert single_draw_error(logits, torch.tensor([0])).tolist() == [0.5]
    assert margin(logits, torch.tensor([0])).item() < 0


def test_both_rules_reach_the_worst_case_of_a_linear_model(generator: torch.Generator) -> None:
    model = NoisyLinear(2, 16, 2, 0.4)
    # Equal members: the worst point of every rule is the same corner.
    with torch.no_grad():
        model.weight[1] = model.weight[0]
    x = interior_images((20, 1, 4, 4), generator)
    y = (x.flatten(1) @ model.weight[0].T).argmax(-1)
    w = (model.weight[0, 1] - model.weight[0, 0]).detach()
    corner = x + 0.1 * (1 - 2 * y.view(-1, 1, 1, 1)) * w.sign().view(1, 1, 4, 4)
    noise = _random.derive_generator(1, "score")
    for accept in ("margin", "expected_accuracy"):
        found = attacks.arc(model, x, y, eps=0.1, restarts=2, accept=accept, generator=generator)
        ours, best, clean = (
            single_draw_error(model.member_logits(points, 400, generator=noise), y)
            for points in (found, corner, x)
        )
        # Two shares of 400 draws each: three standard errors of their difference are at most 0.106.
        assert (ours >= best - 0.106).float().mean() >= 0.95
        assert ours.mean() > clean.mean() + 0.1


def test_the_rule_decides_which_point_is_kept() -> None:
    model = LoudMinority()
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    kept = {
        accept: attacks.arc(
            model,
            x,
            y,
            eps=0.1,
            steps=1,
            restarts=1,
            eot=4,
            bank_draws=4,
            accept=accept,
            start=torch.full_like(x, 0.55),
            generator=torch.Generator().manual_seed(0),
        )
        for accept in ("margin", "expected_accuracy")
    }
    # From 0.55 the loud draw's boundary is full turn away, at 0.45: better for the margin, worse for the
    # share of draws that err.
    assert kept["margin"].item() == pytest.approx(0.45, abs=1e-6)
    assert kept["expected_accuracy"].item() == pytest.approx(0.55, abs=1e-6)
    assert single_draw_error(model.member_logits(kept["expected_accuracy"], 4), y).item() == 0.75


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(InputError, match="accept is 'accuracy'"):
        attacks.arc(
            LoudMinority(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), eps=0.1, accept="accuracy"
        )
