"""ADP's entropy and diversity on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from squint._checks import InputError
from squint.baselines import make_rival
from squint.baselines.adp import ensemble_entropy, log_diversity
from tests.baselines.models import Answers, value
from tests.baselines.tiny import setup_of

ORTHOGONAL = torch.tensor([[[0.5, 0.5, 0.0]], [[0.5, 0.0, 0.5]]], dtype=torch.float64)
"""Two members for one image of class 0, each with its own wrong class."""


def test_the_entropy_is_that_of_the_mean() -> None:
    # Mean (1/2, 1/4, 1/4): 1/2 log 2 + 1/2 log 4.
    assert float(ensemble_entropy(ORTHOGONAL)) == pytest.approx(1.5 * math.log(2))


def test_orthogonal_wrong_answers_span_the_unit_volume() -> None:
    assert float(log_diversity(ORTHOGONAL, torch.tensor([0]))) == pytest.approx(0, abs=3e-6)


def test_equal_wrong_answers_span_nothing() -> None:
    same = ORTHOGONAL[:1].expand(2, -1, -1)
    # det [[1 + d, 1], [1, 1 + d]] = 2 d + d^2 with d = 1e-6.
    assert float(log_diversity(same, torch.tensor([0]))) == pytest.approx(math.log(2e-6), abs=1e-3)


def test_the_volume_is_the_sine_squared() -> None:
    # Wrong parts (3, 4)/5 and (1, 0): cosine 0.6; the true class, here 1, plays no part.
    p = torch.tensor([[[0.3, 0.3, 0.4]], [[0.9, 0.1, 0.0]]], dtype=torch.float64)
    assert float(log_diversity(p, torch.tensor([1]))) == pytest.approx(math.log(1 - 0.36), abs=1e-5)


def test_the_loss_is_the_papers_over_members() -> None:
    p = torch.tensor([[[[0.5, 0.4, 0.1]], [[0.6, 0.1, 0.3]]]], dtype=torch.float64)
    y = torch.tensor([0])
    terms = make_rival("adp").objective(setup_of("adp"))(Answers(p.log()), torch.zeros(1, 1), y, 0)
    assert value(terms["member_ce"]) == pytest.approx(-(math.log(0.5) + math.log(0.6)) / 2)
    assert value(terms["entropy"]) == pytest.approx(-2 / 2 * float(ensemble_entropy(p[0])))
    assert value(terms["diversity"]) == pytest.approx(-0.5 / 2 * float(log_diversity(p[0], y)))


def test_one_member_is_refused() -> None:
    with pytest.raises(InputError, match="members has 1 entries; rival adp allowed: 2 or more"):
        make_rival("adp").check(setup_of("adp", members=1))
