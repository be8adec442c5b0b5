"""Every term of the loss against its closed form, and its gradient against differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.training.nets import source
from torch import Tensor

from squint._checks import InputError
from squint.training import terms

DRAWS, MEMBERS, BATCH, CLASSES = 3, 2, 4, 5


def logits() -> Tensor:
    return torch.randn(DRAWS, MEMBERS, BATCH, CLASSES, generator=source(), dtype=torch.float64)


def labels() -> Tensor:
    return torch.tensor([0, 3, 3, 4])


def features() -> list[Tensor]:
    generator = source(1)
    return [torch.randn(6, width, generator=generator, dtype=torch.float64) for width in (3, 4, 2)]


CLASSES_OF_SIX = torch.tensor([0, 0, 0, 1, 1, 1])


def by_hand(logits: Tensor) -> list[list[list[list[float]]]]:
    """Probabilities by plain arithmetic, [draw][member][example][class]."""

    def softmax(row: list[float]) -> list[float]:
        total = sum(math.exp(v) for v in row)
        return [math.exp(v) / total for v in row]

    return [[[softmax(row) for row in member] for member in draw] for draw in logits.tolist()]


def test_member_cross_entropy_is_the_mean_loss_of_members_and_draws() -> None:
    p, y = by_hand(logits()), labels().tolist()
    losses = [-math.log(p[s][m][i][y[i]]) for s in range(DRAWS) for m in range(MEMBERS) for i in range(BATCH)]
    assert terms.member_cross_entropy(logits(), labels()).item() == pytest.approx(sum(losses) / len(losses))


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    smoothing = 0.2
    log_p = logits().log_softmax(-1)
    target = torch.full((BATCH, CLASSES), smoothing / CLASSES, dtype=torch.float64)
    target[torch.arange(BATCH), labels()] += 1 - smoothing
    wanted = -(target * log_p).sum(-1).mean()
    torch.testing.assert_close(terms.member_cross_entropy(logits(), labels(), smoothing), wanted)


def test_ensemble_cross_entropy_is_that_of_the_mean_probability() -> None:
    p, y = by_hand(logits()), labels().tolist()
    wanted = 0.0
    for i in range(BATCH):
        mean = sum(p[s][m][i][y[i]] for s in range(DRAWS) for m in range(MEMBERS)) / (DRAWS * MEMBERS)
        wanted -= math.log(mean) / BATCH
    assert terms.ensemble_cross_entropy(logits(), labels()).item() == pytest.approx(wanted)


def test_agreement_is_the_divergence_of_the_mean_from_its_draws() -> None:
    p = by_hand(logits())
    wanted = 0.0
    for m in range(MEMBERS):
        for i in range(BATCH):
            mean = [sum(p[s][m][i][c] for s in range(DRAWS)) / DRAWS for c in range(CLASSES)]
            for s in range(DRAWS):
                wanted += sum(q * math.log(q / p[s][m][i][c]) for c, q in enumerate(mean))
    wanted /= DRAWS * MEMBERS * BATCH
    assert terms.agreement(logits()).item() == pytest.approx(wanted)


def test_agreement_of_two_coins_is_known() -> None:
    # Draws p and 1-p: the mean is even, and KL(1/2 || p) = -log(2 sqrt(p (1-p))).
    p = 0.9
    draws = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().view(2, 1, 1, 2)
    assert terms.agreement(draws).item() == pytest.approx(-math.log(2 * math.sqrt(p * (1 - p))))
    assert terms.agreement(draws[:1].expand(4, -1, -1, -1)).item() == pytest.approx(0, abs=1e-12)


def test_agreement_needs_two_draws() -> None:
    with pytest.raises(InputError, match="2 or more"):
        terms.agreement(logits()[:1])


def gram_by_hand(z: Tensor, y: Tensor | None) -> Tensor:
    """The kernel matrix of L2-normalised rows with the median distance, of same-class pairs given labels."""
    z = z / z.norm(dim=1, keepdim=True)
    distances = (z[:, None] - z[None]).norm(dim=-1)
    n = len(z)
    pairs = [distances[i, j].item() for i in range(n) for j in range(i) if y is None or bool(y[i] == y[j])]
    middle = sorted(pairs)
    sigma = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
    return torch.exp(-distances.square() / (2 * sigma**2))


def entropy_by_hand(k: Tensor) -> Tensor:
    a = k / k.trace()
    return -a.square().sum().log()


def test_redundancy_is_the_order_two_information_of_all_pairs() -> None:
    k = [gram_by_hand(z, None) for z in features()]
    s = entropy_by_hand
    wanted = sum(s(k[i]) + s(k[j]) - s(k[i] * k[j]) for j in range(3) for i in range(j))
    torch.testing.assert_close(terms.redundancy(features()), torch.as_tensor(wanted))


def test_conditional_redundancy_is_the_information_given_the_label() -> None:
    y = CLASSES_OF_SIX
    same = (y[:, None] == y[None]).double()
    k = [gram_by_hand(z, y) for z in features()]
    s = entropy_by_hand
    wanted = sum(
        s(k[i] * same) + s(k[j] * same) - s(k[i] * k[j] * same) - s(same) for j in range(3) for i in range(j)
    )
    torch.testing.assert_close(terms.conditional_redundancy(features(), y), torch.as_tensor(wanted))


def test_information_looks_at_directions_only() -> None:
    z = features()
    lengths = torch.rand(6, 1, generator=source(2), dtype=torch.float64) + 0.5
    stretched = [z[0] * lengths, 30 * z[1], z[2]]
    torch.testing.assert_close(terms.redundancy(stretched), terms.redundancy(z))


def test_information_keeps_its_precision_under_autocast() -> None:
    z = [feature.float() for feature in features()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = terms.redundancy(z), terms.conditional_redundancy(z, CLASSES_OF_SIX)
    torch.testing.assert_close(inside[0], terms.redundancy(z))
    torch.testing.assert_close(inside[1], terms.conditional_redundancy(z, CLASSES_OF_SIX))


@pytest.mark.parametrize(
    "term",
    [
        lambda z: terms.member_cross_entropy(z, labels(), 0.1),
        lambda z: terms.ensemble_cross_entropy(z, labels()),
        terms.agreement,
    ],
    ids=["member_ce", "ensemble_ce", "agreement"],
)
def test_gradients_of_losses_match_differences(term: Callable[[Tensor], Tensor]) -> None:
    # Agreement's mean is not detached: a detached one would fail here.
    assert torch.autograd.gradcheck(term, logits().requires_grad_())


def information_gradient(term: Callable[[list[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the gradient in the first member's features, and central differences of it.

    The median distance is detached, so the differences hold it fixed: they move one row of a copy that
    leaves the median where it is, as all pairs of it stay on their side.
    """
    z = [feature.clone().requires_grad_() for feature in features()]
    (gradient,) = torch.autograd.grad(term(z), z[0])
    h = 1e-6
    wanted = torch.zeros_like(gradient)
    for place in range(gradient.numel()):
        values = []
        for sign in (1, -1):
            moved = features()
            moved[0].view(-1)[place] += sign * h
            values.append(term(moved).item())
        wanted.view(-1)[place] = (values[0] - values[1]) / (2 * h)
    return gradient, wanted


@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_of_information_match_differences(
    conditional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bandwidth is detached by design: hold it fixed, as the gradient does.
    monkeypatch.setattr("squint.information.kernel._sigma", lambda d2, *_: d2.new_full((len(d2),), 0.7))
    term = (lambda z: terms.conditional_redundancy(z, CLASSES_OF_SIX)) if conditional else terms.redundancy
    gradient, wanted = information_gradient(term)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)
    assert float(gradient.abs().max()) > 1e-3
