"""`Detector`: flags suspicious inputs of one ensemble at a stated false-alarm rate."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from squint import data as D
from squint._checks import (
    HasMemberLogits,
    InputError,
    InputTypeError,
    check_choice,
    check_images,
    check_number,
)
from squint._files import read_tensors, write_tensors
from squint._random import default_generator, derive_generator
from squint.attacks.modes import evaluation_mode
from squint.attacks.pursuit import DeployedDetector
from squint.ensemble import Ensemble
from squint.evaluation.detection.calibration import calibrated, minimum_examples
from squint.evaluation.detection.fitted import COMBINATION, FITTED, Combination, FittedScore, check_state
from squint.evaluation.detection.identity import fingerprint, other_ensemble, versions
from squint.evaluation.detection.learning import view_of
from squint.evaluation.detection.outputs import Observed, deployments
from squint.evaluation.detection.scores import SCORES, SURROGATES
from squint.evaluation.machine import Fitting, device_of

FORMAT_VERSION = 2
_KEY = "squint_detector"


@dataclass(frozen=True)
class Verdict:
    """What one deployment says about each example; all of it comes from the same draws.

    Attributes:
        prediction: predicted class (batch,), by the mean probability.
        score: (batch,) float64, higher is more suspicious.
        p_value: (batch,), the conformal p-value of the score among clean examples.
        flagged: (batch,) bool.
    """

    prediction: Tensor
    score: Tensor
    p_value: Tensor
    flagged: Tensor


class Detector:
    """A score of an ensemble's disagreement with a conformal threshold; made by `fit` or `load`.

    For an example exchangeable with the n calibration examples, P(p_value ≤ a) ≤ a for every a, over the draw
    of both and the noise (split conformal; Vovk et al. 2005, Bates et al. 2023). `flag` is p_value ≤ the
    false-alarm rate. The guarantee is marginal, and holds per deployment: resubmitting an example until it
    passes is another procedure. Noise that a whole batch shares (granularity "tensor", noisy weights) makes
    the calibration scores of a batch depend on each other and weakens it. It says nothing about attacks.

    Attributes:
        ens: the ensemble; not copied.
        score_name: which score.
        draws: draws S of one deployment, shared by prediction and score.
        false_alarm_rate: the stated rate.
        calibration: the calibration scores (n,), ascending, float64.
        threshold: examples with a score above it are flagged.
    """

    def __init__(
        self,
        ens: Ensemble,
        calibration: Tensor,
        *,
        score: str,
        draws: int,
        false_alarm_rate: float,
        num_classes: int,
        fitted: FittedScore | None = None,
    ) -> None:
        needed = minimum_examples(false_alarm_rate)
        if len(calibration) < needed:
            raise InputError(
                f"clean_data leaves {len(calibration)} calibration examples; a false-alarm rate of "
                f"{false_alarm_rate:g} needs {needed} or more"
            )
        broken = int((~calibration.isfinite()).sum())
        if broken:
            raise InputError(f"score {score!r} is NaN or infinite for {broken} of the calibration examples")
        self.ens, self.score_name, self.draws = ens, score, draws
        self.false_alarm_rate, self.num_classes, self._fitted = false_alarm_rate, num_classes, fitted
        self.calibration = calibration.double().cpu().sort().values
        self.threshold = float(
            self.calibration[-math.floor(false_alarm_rate * (len(calibration) + 1) + 1e-9)]
        )
        self.fingerprint, self._seen = fingerprint(ens), versions(ens)

    @classmethod
    def fit(
        cls,
        ens: Ensemble,
        clean_data: D.Data,
        false_alarm_rate: float = 0.05,
        *,
        score: str = "predictive_information",
        draws: int | None = None,
        seed: int = 0,
        fit_data: D.Data | None = None,
        observed: Observed | None = None,
    ) -> Detector:
        """Return a detector calibrated on clean examples, classified correctly or not.

        Args:
            ens: the ensemble that is deployed, with its present rounding; it is left as it was found.
            clean_data: images in [0, 1] and labels that neither training nor `fit_data` has seen.
            false_alarm_rate: share of clean examples that may be flagged, in (0, 1).
            score: a key of `SCORES` or `FITTED`, or "combination".
            draws: draws S of one deployment; None: the ensemble's own.
            seed: of the calibration's noise, and of the split.
            fit_data: clean data to fit a learned score on; None: a random half of `clean_data`, which then
                does not calibrate. Scores that need no fitting ignore it.
            observed: what other fits with equal data, `draws` and `seed` have seen, which saves their passes.

        Raises:
            squint.InputError: a value out of range, too few examples (the minimum is named) or NaN scores.
        """
        if not isinstance(ens, Ensemble):
            raise InputTypeError(f"Detector needs a squint.Ensemble, got {type(ens).__name__}")
        check_choice("score", score, (*SCORES, *FITTED, COMBINATION))
        needed = minimum_examples(false_alarm_rate)
        draws = int(check_number("draws", ens.draws if draws is None else draws, 1, whole=True))
        images, labels = D.collect(clean_data)
        learned, source = score not in SCORES, None
        if learned and fit_data is None:
            order = torch.randperm(len(images), generator=derive_generator(seed, "detector", "split"))
            half = len(images) // 2
            # The larger half calibrates, and no score can be fitted on a single example.
            least = max(2 * needed - 1, 4)
            if len(images) < least:
                raise InputError(
                    f"clean_data has {len(images)} examples, half of which fit the score; a false-alarm rate "
                    f"of {false_alarm_rate:g} needs {least} or more, or fit_data"
                )
            source, images = (images[order[:half]], labels[order[:half]]), images[order[half:]]
        elif learned:
            assert fit_data is not None
            source = D.collect(fit_data)
        device = device_of(ens)
        seen = observed or Observed(seed, draws)
        with evaluation_mode(ens), torch.no_grad():
            classes, fitted, scores = Fitting().forward(
                ens, lambda: calibrated(ens, score, images.to(device), source, seen)
            )
        return cls(
            ens,
            scores,
            score=score,
            draws=draws,
            false_alarm_rate=false_alarm_rate,
            num_classes=classes,
            fitted=fitted,
        )

    def examine(self, x: Tensor, *, generator: torch.Generator | None = None) -> Verdict:
        """Return prediction, score, p-value and flag of one deployment on each image.

        Args:
            x: images (batch, channels, height, width) in [0, 1].
            generator: source of the noise; None: the innermost `squint.noise`, or squint's own stream.

        Raises:
            squint.InputError: images out of range, NaN scores, or an ensemble that is no longer the one that
                the detector was fitted for.
        """
        check_images(x)
        self._check_ensemble()
        generator = generator or default_generator()
        begun = generator.get_state()

        def deployed() -> tuple[Tensor, Tensor]:
            generator.set_state(begun)
            predictions, scores = [], []
            device = device_of(self.ens)
            for part in deployments(self.view, x.to(device), draws=self.draws, count=1, generator=generator):
                predictions.append(
                    part[0, ..., : self.num_classes].double().softmax(-1).mean((0, 1)).argmax(-1)
                )
                scores.append(self.deployed.scores(part[0])[0])
            return torch.cat(predictions).cpu(), torch.cat(scores).cpu()

        with evaluation_mode(self.ens):
            predictions, score = Fitting().forward(self.ens, deployed)
        broken = int(score.isnan().sum())
        if broken:
            raise InputError(f"score {self.score_name!r} is NaN for {broken} of {len(x)} images")
        return Verdict(predictions, score, self.p_values(score), score > self.threshold)

    def score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the scores (batch,), float64, higher where more suspicious; see `examine`."""
        return self.examine(x, generator=generator).score

    def p_value(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the conformal p-values (batch,) in [1/(n + 1), 1]; see `examine`."""
        return self.examine(x, generator=generator).p_value

    def flag(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return (batch,) bool: whether the p-value is at most the false-alarm rate; see `examine`."""
        return self.examine(x, generator=generator).flagged

    def p_values(self, scores: Tensor) -> Tensor:
        """Return (1 + #{calibration scores ≥ s}) / (n + 1) for each score s."""
        n = len(self.calibration)
        below = torch.searchsorted(self.calibration, scores.double().cpu().contiguous())
        return (1 + n - below).double() / (n + 1)

    @property
    def view(self) -> HasMemberLogits:
        """The model whose outputs the score reads: the ensemble, with its features where they are needed."""
        return view_of(self.ens, self._fitted)

    @property
    def deployed(self) -> DeployedDetector:
        """The detector as an attacker of `view` knows it: score, threshold and draws."""
        surrogate = SURROGATES.get(self.score_name)
        if isinstance(self._fitted, Combination):
            surrogate = self._fitted.surrogate
        return DeployedDetector(
            self._fitted or SCORES[self.score_name],
            self.threshold,
            self.draws,
            surrogate,
            self.num_classes,
            self.view is not self.ens,
        )

    def save(self, path: str | Path) -> None:
        """Write the detector to a safetensors file, without the ensemble (see `squint.save`)."""
        state = {} if self._fitted is None else dict(self._fitted.state)
        config = {
            "format_version": FORMAT_VERSION,
            "score": self.score_name,
            "draws": self.draws,
            "false_alarm_rate": self.false_alarm_rate,
            "num_classes": self.num_classes,
            "fingerprint": self.fingerprint,
        }
        tensors = {f"score.{name}": value for name, value in state.items()}
        write_tensors(Path(path), {"calibration": self.calibration, **tensors}, {_KEY: json.dumps(config)})

    @classmethod
    def load(cls, path: str | Path, ens: Ensemble) -> Detector:
        """Return the detector of a file from `save`, for the ensemble that it was fitted for.

        Raises:
            squint.InputError: no file of a detector, or one that was fitted for another ensemble.
        """
        tensors, metadata = read_tensors(Path(path))
        try:
            config = dict[str, Any](json.loads(metadata[_KEY]))
            if config["format_version"] > FORMAT_VERSION:
                raise InputError("has a newer format than this squint reads: update squint")
            if config["format_version"] < FORMAT_VERSION:
                raise InputError("has an older format, which did not keep the noise: fit the detector again")
            name, expected = config["score"], config["fingerprint"]
            calibration = tensors.pop("calibration")
            state = {key.removeprefix("score."): value for key, value in tensors.items()}
            if name not in SCORES:
                check_state(name, state, len(ens.members))
            kinds: dict[str, Any] = {**FITTED, COMBINATION: Combination}
            detector = cls(
                ens,
                calibration.reshape(-1),
                score=name,
                draws=int(check_number("draws", config["draws"], 1, whole=True)),
                false_alarm_rate=config["false_alarm_rate"],
                num_classes=int(check_number("num_classes", config["num_classes"], 2, whole=True)),
                fitted=kinds[name](state) if name not in SCORES else None,
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError, RecursionError, RuntimeError):
            raise InputError(f"{path} was not written by Detector.save") from None
        if detector.fingerprint != expected:
            raise InputError(other_ensemble(expected, detector.fingerprint))
        return detector

    def _check_ensemble(self) -> None:
        # Hashing all weights at every call would be dear; torch counts the writes to each tensor.
        seen = versions(self.ens)
        if seen != self._seen:
            found = fingerprint(self.ens)
            if found != self.fingerprint:
                raise InputError(other_ensemble(self.fingerprint, found))
            self._seen = seen
