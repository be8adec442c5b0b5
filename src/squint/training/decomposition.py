"""What an ensemble's accuracy is made of: relevance, redundancy and conditional redundancy, in nats.

For two members' labels, each drawn from the member's probabilities, Brown's identity (2009) is exact:

    I(Ŷ_1, Ŷ_2; Y) = I(Ŷ_1; Y) + I(Ŷ_2; Y) − I(Ŷ_1; Ŷ_2) + I(Ŷ_1; Ŷ_2 | Y)

For more members this module keeps the terms of single members and of pairs and leaves out the higher ones, as
Brown does: their tables have classes^members cells, which no validation set fills.
"""

from __future__ import annotations

from itertools import chain, combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from squint._checks import check_images, check_labels, check_number
from squint.attacks.modes import evaluation_mode
from squint.ensemble import Ensemble
from squint.information import (
    pairwise_information,
    soft_label_conditional_mutual_information,
    soft_label_mutual_information,
)

DECOMPOSED = 512
"""Validation images whose information is taken apart after an epoch."""
RENYI_ROWS = 512
"""Most images behind the Rényi terms: their cost grows with the square, and their bias depends on n."""


@torch.no_grad()
def decompose(
    ens: Ensemble,
    x: Tensor,
    y: Tensor,
    draws: int,
    generator: torch.Generator,
    *,
    correction: str = "miller_madow",
    batch_size: int = 256,
) -> dict[str, float]:
    """Return the terms of Brown's decomposition on given images, by name, in nats.

    | name | what |
    |---|---|
    | relevance | mean over members of I(Ŷ_m; Y) |
    | redundancy | mean over pairs of I(Ŷ_i; Ŷ_j) |
    | conditional_redundancy | mean over pairs of I(Ŷ_i; Ŷ_j given Y) |
    | total | Σ relevance − Σ redundancy + Σ conditional redundancy, over members and pairs |
    | label_entropy | H(Y), which relevance cannot exceed but for its bias |
    | renyi_redundancy, renyi_conditional_redundancy | means over pairs of the order-2 terms of the loss |

    The first three are plug-in information of the members' probabilities, averaged over draws: not the
    estimator that is trained against. The Rényi terms are those of the loss, on L2-normalised features of one
    draw and at most the first 512 images. With a single member all terms of pairs are 0. The ensemble is
    asked in evaluation mode and left as it was found.

    Args:
        ens: the ensemble.
        x: images (n, channels, height, width) in [0, 1].
        y: labels (n,).
        draws: noise samples per member that a prediction averages.
        generator: source of the noise.
        correction: of the plug-in terms, "miller_madow" or "none", under which `total` of two members is
            their joint information exactly.
        batch_size: images at once.

    Raises:
        InputError: images, labels or numbers are not allowed.
    """
    check_images(x)
    check_number("draws", draws, 1, whole=True)
    check_number("batch_size", batch_size, 1, whole=True)
    device = next((each.device for each in chain(ens.parameters(), ens.buffers())), torch.device("cpu"))
    predicted, seen = [], []
    with evaluation_mode(ens):
        for first in range(0, len(x), batch_size):
            part = x[first : first + batch_size].to(device)
            logits, features = ens.logits_and_features(part, draws, generator=generator)
            predicted.append(logits.double().softmax(-1).mean(0).cpu())
            if first < RENYI_ROWS:
                seen.append([F.normalize(z.float(), dim=1).cpu() for z in features])
    p = torch.cat(predicted, 1)
    members, n, classes = p.shape
    check_labels(y, n, classes)
    y = y.cpu()
    truth = F.one_hot(y, classes).double()
    pairs = list(combinations(range(members), 2))
    relevance = [float(soft_label_mutual_information(q, truth, correction=correction)) for q in p]
    shared = [float(soft_label_mutual_information(p[i], p[j], correction=correction)) for i, j in pairs]
    given = [
        float(soft_label_conditional_mutual_information(p[i], p[j], y, correction=correction))
        for i, j in pairs
    ]
    features = [torch.cat(parts)[:RENYI_ROWS] for parts in zip(*seen, strict=True)]
    matrices = pairwise_information(features, y[:RENYI_ROWS])
    assert matrices.conditional is not None
    return {
        "relevance": _mean(relevance),
        "redundancy": _mean(shared),
        "conditional_redundancy": _mean(given),
        "total": sum(relevance) - sum(shared) + sum(given),
        "label_entropy": float(torch.special.entr(truth.mean(0)).sum()),
        "renyi_redundancy": _mean([float(matrices.redundancy[pair]) for pair in pairs]),
        "renyi_conditional_redundancy": _mean([float(matrices.conditional[pair]) for pair in pairs]),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
