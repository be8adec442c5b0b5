"""What `run_ladder` found: worst points, scores under every rule, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from squint.evaluation.arrays import Array
from squint.evaluation.climbs import UNBROKEN, Climb, RungRun, joined
from squint.evaluation.first_rung import FirstRung
from squint.evaluation.intervals import intervals_of, wilson
from squint.evaluation.scoring import Scores
from squint.evaluation.scoring_rules import SweepPoint, margin_summary
from squint.evaluation.selection import DEPLOYED, SINGLE

TRIES = (1, 10, 100)
"""Resubmissions q of the persistent attacker."""


@dataclass(frozen=True, eq=False)
class LadderResult:
    """Every image's worst case and every rule's score, on the CPU.

    Attributes:
        configuration: what the result depends on.
        images: clean images (n, ...).
        labels: labels (n,).
        climb: worst points, breaking rungs and spending.
        clean: scores of the clean images.
        deployed: scores of the points kept for the deployed rule: the headline.
        single: scores of the points kept for the single-draw rule.
        rounded: scores of the deployed rule's points rounded to bytes.
        points_uint8: those bytes (n, ...).
        known_wrong: whether one fixed deployment errs where the attacker knows its draws (n,), or None where
            that was not asked for or means nothing: the model has no noise, or noise out of squint's reach.
        known_clean_wrong: the same deployment on clean images (n,), or None.
        sweep: the deployed rule's points with other numbers of draws.
        margins: mean margin of the deployed rule at the worst points (n,).
        clean_margins: at the clean images (n,).
        seconds: wall time of all batches.
        first_rung: what the first rung and plain PGD left; None where the first rung is another attack.
    """

    configuration: Mapping[str, Any]
    images: Tensor
    labels: Tensor
    climb: Climb
    clean: Scores
    deployed: Scores
    single: Scores
    rounded: Scores
    points_uint8: Tensor
    known_wrong: Tensor | None
    known_clean_wrong: Tensor | None
    sweep: tuple[SweepPoint, ...]
    margins: Tensor
    clean_margins: Tensor
    seconds: float
    first_rung: FirstRung | None = None

    @property
    def gradients_per_image(self) -> float:
        """Ensemble gradients spent, mean over all images."""
        return float(self.climb.gradients.double().mean())

    @property
    def gradients_per_broken(self) -> float | None:
        """All gradients over the number of images that a rung broke; None where none was."""
        broken = int((self.climb.broken_by > 0).sum())
        return int(self.climb.gradients.sum()) / broken if broken else None

    def summary(self) -> dict[str, Any]:
        """Return every figure as plain data, with its interval where it has one."""
        n = len(self.labels)
        names = [run.name for run in self.climb.rungs]
        broken = self.climb.broken_by
        return {
            "system": self.configuration["system"],
            "preset": self.configuration["budget"]["name"],
            "eps": self.configuration["eps"],
            "seed": self.configuration["seed"],
            "n": n,
            "draws": self.deployed.draws,
            "resubmissions": self.deployed.resubmissions,
            "clean_accuracy": self.clean.accuracy,
            "clean_ci95": _interval(self.clean.accuracy, n),
            "robust_accuracy": self.deployed.accuracy,
            "ci95": _interval(self.deployed.accuracy, n),
            "single_draw_accuracy": self.single.single_draw_accuracy,
            "persistent": {str(q): self.deployed.persistent_accuracy(q) for q in TRIES},
            "clean_persistent": {str(q): self.clean.persistent_accuracy(q) for q in TRIES},
            "uint8_accuracy": self.rounded.accuracy,
            "known_randomness_accuracy": _share_right(self.known_wrong),
            "known_randomness_clean_accuracy": _share_right(self.known_clean_wrong),
            "sweep": [
                {
                    "draws": point.draws,
                    "resubmissions": point.resubmissions,
                    "accuracy": point.accuracy,
                    "seconds_per_image": point.seconds,
                }
                for point in self.sweep
            ],
            **({} if self.first_rung is None else self.first_rung.summary()),
            "intervals": self._intervals(),
            "margins": margin_summary(self.margins),
            "clean_margins": margin_summary(self.clean_margins),
            "broken_on_clean": int((broken == 0).sum()),
            "broken_by": {name: int((broken == i).sum()) for i, name in enumerate(names, 1)},
            "unbroken": int((broken == UNBROKEN).sum()),
            "gradients_per_image": self.gradients_per_image,
            "gradients_per_broken": self.gradients_per_broken,
            "forwards_per_image": float(self.climb.forwards.double().mean()),
            "rungs": [
                {
                    "name": run.name,
                    "survivors": run.survivors,
                    "gradients": run.gradients,
                    "forwards": run.forwards,
                    "seconds": run.seconds,
                    "skipped": list(run.skipped),
                }
                for run in self.climb.rungs
            ],
            "seconds": self.seconds,
        }

    def _intervals(self) -> dict[str, list[float]]:
        """Return the Wilson intervals of the figures beside the headline's, by their names."""
        figures = {
            "single_draw_accuracy": self.single.single_draw_accuracy,
            "uint8_accuracy": self.rounded.accuracy,
            "known_randomness_accuracy": _share_right(self.known_wrong),
            "known_randomness_clean_accuracy": _share_right(self.known_clean_wrong),
            **{f"persistent {q}": self.deployed.persistent_accuracy(q) for q in TRIES},
            **{f"clean persistent {q}": self.clean.persistent_accuracy(q) for q in TRIES},
            **{f"{point.draws} draws": point.accuracy for point in self.sweep},
            **({} if self.first_rung is None else self.first_rung.summary()),
        }
        return intervals_of(figures, len(self.labels))


def _interval(accuracy: float, n: int) -> list[float]:
    return list(wilson(accuracy * n, n))


def _share_right(wrong: Tensor | None) -> float | None:
    return None if wrong is None else 1 - float(wrong.double().mean())


def assemble(
    configuration: Mapping[str, Any],
    labels: Tensor,
    images: Tensor,
    parts: Sequence[tuple[dict[str, Array], dict[str, Any]]],
) -> LadderResult:
    """Return the result that the batches' arrays and plain data amount to."""

    def whole(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([arrays[name] for arrays, _ in parts]))

    def scores(name: str) -> Scores:
        plain = parts[0][1]["scores"][name]
        return Scores(
            whole(f"{name}_errors"),
            plain["resubmissions"],
            whole(f"{name}_single_errors"),
            plain["draws"],
            plain["random"],
            # Outcomes of earlier versions have not counted NaN.
            whole(f"{name}_nan") if all(f"{name}_nan" in arrays for arrays, _ in parts) else None,
        )

    known = all("known_wrong" in arrays for arrays, _ in parts)
    compared = all("plain_pgd_errors" in arrays for arrays, _ in parts)
    return LadderResult(
        configuration,
        images.cpu(),
        labels.cpu(),
        joined([_climb(*part) for part in parts]),
        scores("clean"),
        scores("deployed"),
        scores("single"),
        scores("uint8"),
        whole("point_uint8"),
        whole("known_wrong") if known else None,
        whole("known_clean_wrong") if known else None,
        tuple(
            SweepPoint(
                p["draws"],
                p["resubmissions"],
                whole(f"sweep_{p['draws']}"),
                float(np.mean([plain["sweep"][i]["seconds"] for _, plain in parts])),
            )
            for i, p in enumerate(parts[0][1].get("sweep", ()))
        ),
        whole("deployed_margin"),
        whole("clean_margin"),
        sum(plain["seconds"] for _, plain in parts),
        FirstRung(scores("first_rung"), scores("plain_pgd")) if compared else None,
    )


def _climb(arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> Climb:
    runs = (RungRun(**{**run, "skipped": tuple(run["skipped"])}) for run in plain["rungs"])
    return Climb(
        {rule: torch.from_numpy(np.asarray(arrays[f"point_{rule}"])) for rule in (DEPLOYED, SINGLE)},
        {rule: torch.from_numpy(np.asarray(arrays[f"margin_{rule}"])) for rule in (DEPLOYED, SINGLE)},
        torch.from_numpy(np.asarray(arrays["broken_by"])),
        torch.from_numpy(np.asarray(arrays["gradients"])),
        torch.from_numpy(np.asarray(arrays["forwards"])),
        tuple(runs),
    )
