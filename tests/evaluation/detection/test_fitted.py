from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from squint._checks import InputError
from squint.evaluation.detection.fitted import (
    Combination,
    GaussianDensity,
    Neighbours,
    ReferenceInformation,
)

CLASSES, FEATURES = 3, 5


@pytest.fixture
def clean(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Outputs (draws, members, n, classes + features) of three Gaussian classes, and labels."""
    labels = torch.arange(240) % CLASSES
    centres = 3 * torch.randn(2, CLASSES, FEATURES, generator=generator)
    features = centres[:, labels] + torch.randn(2, 2, 240, FEATURES, generator=generator)
    return torch.cat([torch.zeros(2, 2, 240, CLASSES), features], -1), labels


def test_gaussian_density_is_the_nearest_mahalanobis_distance(clean: tuple[Tensor, Tensor]) -> None:
    outputs, labels = clean
    score = GaussianDensity.fit(outputs, labels, CLASSES)
    found = score(outputs[:, :, :4])
    expected = np.zeros(4)
    for member in range(2):
        own = outputs[:, member, :, CLASSES:].double().numpy()
        centres = np.stack([own[:, labels == c].mean((0, 1)) for c in range(CLASSES)])
        rest = (own - centres[labels]).reshape(-1, FEATURES)
        covariance = rest.T @ rest / len(rest)
        covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / FEATURES * np.eye(FEATURES)
        inverse = np.linalg.inv(covariance)
        for draw in range(2):
            gap = own[draw, :4, None] - centres
            distance = np.einsum("ncf,fg,ncg->nc", gap, inverse, gap).min(1)
            expected += distance / FEATURES / 4
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8)


def test_neighbours_are_those_of_a_search(clean: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    outputs, labels = clean
    score = Neighbours.fit(outputs, labels, CLASSES)
    asked = torch.randn(1, 2, 6, CLASSES + FEATURES, generator=generator)
    expected = np.zeros(6)
    for member in range(2):
        unit = torch.nn.functional.normalize
        bank = unit(outputs[0, member, :, CLASSES:].double(), dim=-1).numpy()
        search = NearestNeighbors(n_neighbors=10).fit(bank)
        distances, _ = search.kneighbors(unit(asked[0, member, :, CLASSES:].double(), dim=-1).numpy())
        expected += distances[:, -1] / 2
    np.testing.assert_allclose(score(asked).numpy(), expected, rtol=1e-8)


def test_reference_information_is_the_fall_when_the_example_joins(
    clean: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    outputs, labels = clean
    score = ReferenceInformation.fit(outputs, labels, CLASSES)
    bank, widths = score.state["bank"], score.state["widths"]
    asked = torch.randn(1, 2, 3, CLASSES + FEATURES, generator=generator).double()
    unit = torch.nn.functional.normalize(asked[0, :, :, CLASSES:], dim=-1)

    def information(points: Tensor) -> float:
        kernels = [
            torch.exp(-torch.cdist(own, own).square() / (2 * width**2))
            for own, width in zip(points, widths, strict=True)
        ]
        joint = kernels[0] * kernels[1]
        a, b, ab = (float(-(k / k.trace()).square().sum().log()) for k in (*kernels, joint))
        return a + b - ab

    before = information(bank)
    n = bank.shape[1]
    expected = [n * (before - information(torch.cat([bank, unit[:, i : i + 1]], 1))) for i in range(3)]
    # cdist of a point with itself is not exactly 0.
    np.testing.assert_allclose(score(asked).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_reference_information_needs_two_members(clean: tuple[Tensor, Tensor]) -> None:
    outputs, labels = clean
    with pytest.raises(InputError, match="2 members"):
        ReferenceInformation.fit(outputs[:, :1], labels, CLASSES)


def test_examples_whose_members_disagree_lower_the_information(clean: tuple[Tensor, Tensor]) -> None:
    outputs, labels = clean
    score = ReferenceInformation.fit(outputs, labels, CLASSES)
    mixed = outputs.clone()
    mixed[:, 1] = mixed[:, 1].roll(1, 1)
    usual, odd = score(outputs), score(mixed)
    error = ((usual.var() + odd.var()) / len(usual)) ** 0.5
    assert odd.mean() > usual.mean() + 4 * error


@pytest.mark.parametrize("kind", [GaussianDensity, Neighbours])
def test_what_lies_far_from_clean_features_scores_high(
    kind: type[GaussianDensity | Neighbours], clean: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    outputs, labels = clean
    score = kind.fit(outputs, labels, CLASSES)
    far = outputs.clone()
    far[..., CLASSES:] = 12 * torch.randn(far[..., CLASSES:].shape, generator=generator)
    assert score(far).median() > score(outputs).quantile(0.95)


def test_the_combination_tells_clean_from_noise(generator: torch.Generator) -> None:
    def outputs(spread: float) -> Tensor:
        shared = 3 * torch.randn(1, 1, 400, 4, generator=generator)
        return shared + spread * torch.randn(3, 2, 400, 4, generator=generator)

    score = Combination.fit_noise(outputs(0.3), outputs(1.5))
    assert score(outputs(1.5)).median() > score(outputs(0.3)).quantile(0.9)
    leaf = outputs(1.0)[:, :, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(score.surrogate, (leaf,))
