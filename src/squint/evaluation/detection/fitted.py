"""Scores that are fitted on clean data: densities of features, information to a reference, a combination."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Protocol

import torch
from torch import Tensor

from squint._checks import InputError
from squint.evaluation.detection.scores import SCORES, SURROGATES

State = Mapping[str, Tensor]
"""A fitted score as tensors, which is how it is saved."""


class FittedScore(Protocol):
    """A score with a state: a function of one deployment's outputs (draws, members, batch, width)."""

    state: State
    reads_features: bool
    """Whether the outputs carry features behind the logits."""

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return (batch,), higher where more suspicious."""
        ...


class GaussianDensity:
    """Mean over units of the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018).

    One covariance per member, shared by its classes and shrunk towards its mean variance by one tenth.

    Args:
        state: `means` (members, classes, features) and `factors` (members, features, features), the Cholesky
            factors of the precision matrices.
    """

    reads_features = True

    def __init__(self, state: State) -> None:
        self.state = state

    @classmethod
    def fit(cls, outputs: Tensor, labels: Tensor, num_classes: int) -> GaussianDensity:
        """Fit on outputs (draws, members, n, classes + features), every draw an example."""
        features = outputs[..., num_classes:].double()
        present = [label for label in range(num_classes) if bool((labels == label).any())]
        means, factors = [], []
        for member in features.unbind(1):
            centres = torch.stack([member[:, labels == label].flatten(0, 1).mean(0) for label in present])
            own = torch.stack([centres[present.index(int(label))] for label in labels])
            rest = (member - own).flatten(0, 1)
            covariance = rest.T @ rest / len(rest)
            level = covariance.diagonal().mean().clamp_min(1e-12)
            shrunk = 0.9 * covariance + 0.1 * level * torch.eye(len(covariance), dtype=torch.float64)
            means.append(centres)
            factors.append(torch.linalg.cholesky(torch.linalg.inv(shrunk)))
        return cls({"means": torch.stack(means), "factors": torch.stack(factors)})

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return (batch,) mean squared distances, divided by the number of features."""
        means, factors = (self.state[name].to(outputs.device) for name in ("means", "factors"))
        features = outputs[..., -means.shape[-1] :].double()
        white = torch.einsum("smbf,mfg->smbg", features, factors)
        centres = torch.einsum("mcf,mfg->mcg", means, factors)
        distances = (white.unsqueeze(-2) - centres[None, :, None]).square().mean(-1)
        return distances.amin(-1).mean((0, 1))


class Neighbours:
    """Mean over units of the distance to the k-th nearest clean features, L2-normalised (Sun et al. 2022).

    Args:
        state: `bank` (members, n, features) of unit vectors and `k`.
    """

    reads_features = True

    def __init__(self, state: State) -> None:
        self.state = state

    @classmethod
    def fit(cls, outputs: Tensor, labels: Tensor, num_classes: int) -> Neighbours:
        """Fit on outputs (draws, members, n, classes + features): the first draw's, up to 1,000 examples."""
        del labels
        bank = _unit(outputs[0, :, :1000, num_classes:].double())
        return cls({"bank": bank, "k": torch.tensor(min(10, bank.shape[1]))})

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return (batch,) mean distances to the k-th neighbour, in [0, 2]."""
        bank, k = self.state["bank"].to(outputs.device), int(self.state["k"])
        features = _unit(outputs[..., -bank.shape[-1] :].double())
        near = torch.einsum("smbf,mnf->smbn", features, bank).topk(k, -1).values[..., -1]
        return (2 - 2 * near).clamp_min(1e-24).sqrt().mean((0, 1))


class ReferenceInformation:
    """How much the members' shared information on a clean batch falls when the example joins it.

    With Gram matrices A of L2-normalised features, S₂(A) = −log ‖A‖²_F / tr² and I = S(A) + S(B) − S(A∘B)
    (matrix-based Rényi information of order 2), one more example with kernel values k changes ‖A‖²_F to
    ‖A‖²_F + 2‖k‖² + 1, so the new information costs O(n) an example. The score is n times the fall, averaged
    over pairs of members and draws: large where the members place the example beside different neighbours.

    Args:
        state: `bank` (members, n, features) of unit vectors, `widths` (members,), the kernels' σ, and the
            squared Frobenius norms `single` (members,) and `joint` (pairs,).
    """

    reads_features = True

    def __init__(self, state: State) -> None:
        self.state = state

    @classmethod
    def fit(cls, outputs: Tensor, labels: Tensor, num_classes: int) -> ReferenceInformation:
        """Fit on outputs (draws, members, n, classes + features): the first draw's, up to 500 examples."""
        del labels
        if outputs.shape[1] < 2:
            raise InputError("score is 'reference_information'; allowed: ensembles of 2 members or more")
        bank = _unit(outputs[0, :, :500, num_classes:].double())
        distances = torch.cdist(bank, bank)
        off = ~torch.eye(bank.shape[1], dtype=torch.bool)
        widths = torch.stack([member[off].median() for member in distances]).clamp_min(1e-6)
        kernels = torch.exp(-distances.square() / (2 * widths.square()[:, None, None]))
        joint = [(kernels[i] * kernels[j]).square().sum() for i, j in combinations(range(len(bank)), 2)]
        single = kernels.square().sum((1, 2))
        return cls({"bank": bank, "widths": widths, "single": single, "joint": torch.stack(joint)})

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return (batch,) in nats times the size of the reference batch."""
        bank, widths, single, joint = (
            self.state[name].to(outputs.device) for name in ("bank", "widths", "single", "joint")
        )
        n = bank.shape[1]
        features = _unit(outputs[..., -bank.shape[-1] :].double())
        squared = (2 - 2 * torch.einsum("smbf,mnf->smbn", features, bank)).clamp_min(0.0)
        k = torch.exp(-squared / (2 * widths.square()[:, None, None]))
        own = torch.log1p((2 * k.square().sum(-1) + 1) / single[:, None])
        grown = 2 * torch.tensor((n + 1) / n, dtype=torch.float64).log()
        falls = []
        for place, (i, j) in enumerate(combinations(range(len(bank)), 2)):
            both = torch.log1p((2 * (k[:, i] * k[:, j]).square().sum(-1) + 1) / joint[place])
            # Each entropy rises by `grown` less its own logarithm, and I is their alternating sum.
            falls.append(own[:, i] + own[:, j] - both - grown)
        return n * torch.stack(falls).mean((0, 1))


class Combination:
    """The log odds of a logistic regression on all unfitted scores, trained on clean images and noise.

    No attack is used to fit it, neither the one that is tested nor another.

    Args:
        state: `weights`, `centre` and `scale`, one value per score, and `bias`.
    """

    reads_features = False

    def __init__(self, state: State) -> None:
        self.state = state

    @classmethod
    def fit_noise(cls, clean: Tensor, noisy: Tensor) -> Combination:
        """Fit on outputs (draws, members, n, classes) of clean and of noisy images."""
        # Imported where it is used: it takes a second that most commands do not need.
        from sklearn.linear_model import LogisticRegression

        rows = torch.cat([_columns(part, SCORES) for part in (clean, noisy)])
        centre, scale = rows.mean(0), rows.std(0).clamp_min(1e-12)
        noise = torch.cat([torch.zeros(clean.shape[2]), torch.ones(noisy.shape[2])])
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        model.fit(((rows - centre) / scale).numpy(), noise.numpy())
        return cls(
            {
                "weights": torch.from_numpy(model.coef_[0]).double(),
                "bias": torch.from_numpy(model.intercept_).double(),
                "centre": centre,
                "scale": scale,
            }
        )

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return (batch,) log odds of noise against clean."""
        return self._odds(_columns(outputs, SCORES))

    def surrogate(self, outputs: Tensor) -> Tensor:
        """Return the log odds with softened votes."""
        return self._odds(_columns(outputs, {**SCORES, **SURROGATES}))

    def _odds(self, columns: Tensor) -> Tensor:
        held = {name: value.to(columns.device) for name, value in self.state.items()}
        columns = (columns - held["centre"]) / held["scale"]
        return (columns * held["weights"]).sum(-1) + held["bias"]


FITTED: dict[str, type[GaussianDensity | Neighbours | ReferenceInformation]] = {
    "gaussian_density": GaussianDensity,
    "neighbours": Neighbours,
    "reference_information": ReferenceInformation,
}
"""Scores fitted on the features of clean data, by name."""

COMBINATION = "combination"


_STATES: dict[str, dict[str, str]] = {
    "gaussian_density": {"means": "mcf", "factors": "mff"},
    "neighbours": {"bank": "mnf", "k": ""},
    "reference_information": {"bank": "mnf", "widths": "m", "single": "m", "joint": "p"},
    COMBINATION: {"weights": "s", "centre": "s", "scale": "s", "bias": "b"},
}
"""Shapes of each fitted score's state, a letter per axis: member, class, feature, example, pair, score."""


def check_state(score: str, state: State, members: int) -> None:
    """Refuse a state that is not one of this score for so many members.

    Raises:
        squint.InputError: a tensor is missing, unknown, of another shape or not finite.
    """
    expected = _STATES[score]
    if state.keys() != expected.keys():
        raise InputError(f"score {score!r} has {', '.join(sorted(state))}; needed: {', '.join(expected)}")
    sizes = {"m": members, "p": members * (members - 1) // 2, "s": len(SCORES), "b": 1}
    for name, letters in expected.items():
        tensor = state[name]
        fits = tensor.ndim == len(letters) and all(
            size > 0 and sizes.setdefault(letter, size) == size
            for letter, size in zip(letters, tensor.shape, strict=True)
        )
        if not fits or not bool(tensor.isfinite().all()):
            raise InputError(f"{name} of score {score!r} has shape {tuple(tensor.shape)} or is not finite")
    if "k" in state and not 1 <= int(state["k"]) <= sizes["n"]:
        raise InputError(f"k of score {score!r} is {int(state['k'])}; allowed: 1..{sizes['n']}")


def _columns(logits: Tensor, scores: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    return torch.stack([score(logits) for score in scores.values()], -1)


def _unit(features: Tensor) -> Tensor:
    unit: Tensor = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return unit
