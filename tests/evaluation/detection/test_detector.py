from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from squint import Ensemble, noise, save, set_rounding
from squint import load as load_ensemble
from squint._checks import InputError, InputTypeError
from squint._random import derive_generator
from squint.evaluation.detection import SCORE_NAMES, SCORES, Detector
from squint.evaluation.detection.calibration import minimum_examples
from squint.evaluation.detection.fitted import COMBINATION, FITTED
from squint.evaluation.detection.identity import fingerprint
from squint.quantize import quantizers
from tests.evaluation.detection.nets import untrained

Setting = tuple[Ensemble, Tensor, Tensor]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_scores(scores: Tensor, rate: float) -> Detector:
    tiny = Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(1, 2))], 1)
    return Detector(tiny, scores, score="entropy", draws=1, false_alarm_rate=rate, num_classes=2, fitted=None)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (37, 0.1), (99, 0.01), (200, 0.05)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_guarantee_holds_over_thousands_of_splits(n: int, rate: float, ties: bool) -> None:
    """Over calibration and test examples, P(flag) ≤ rate, and ≥ rate − 1/(n + 1) without ties."""
    generator = seeded(n)
    splits, tests = 3000, 5
    detector = with_scores(torch.rand(n, generator=generator), rate)
    flagged = small = 0.0
    for _ in range(splits):
        scores = torch.rand(n + tests, generator=generator, dtype=torch.float64)
        scores = (8 * scores).floor() if ties else scores
        detector.calibration = scores[:n].sort().values
        p = detector.p_values(scores[n:])
        flagged += float((p <= rate).double().mean())
        small += float((p <= 0.5).double().mean())
    # Flags of one split share their calibration: independence is only between splits.
    error = 4 * math.sqrt(0.25 / splits)
    spread = 4 * math.sqrt(rate * (1 - rate) / splits) + 4 / splits
    assert flagged / splits <= rate + spread
    assert small / splits <= 0.5 + error
    if not ties:
        expected = math.floor(rate * (n + 1) + 1e-9) / (n + 1)
        assert flagged / splits >= expected - spread


def test_flags_are_p_values_below_the_rate() -> None:
    generator = seeded(0)
    for n, rate in ((19, 0.05), (20, 0.05), (57, 0.13), (99, 0.03)):
        calibration = (20 * torch.rand(n, generator=generator)).round().double()
        detector = with_scores(calibration, rate)
        asked = torch.linspace(-1, 21, 45, dtype=torch.float64)
        p = detector.p_values(asked)
        by_hand = torch.stack([(1 + (calibration >= s).sum()) / (n + 1) for s in asked]).double()
        torch.testing.assert_close(p, by_hand, rtol=0, atol=1e-7)
        assert torch.equal(p <= rate + 1e-12, asked > detector.threshold)


def test_real_splits_keep_the_rate(random_ensemble: Setting) -> None:
    """Calibrated on one random part of the images, the other part is flagged at no more than the rate."""
    ens, x, y = random_ensemble
    rates = []
    for split in range(12):
        order = torch.randperm(200, generator=seeded(split))
        held, asked = order[:99], order[99:]
        detector = Detector.fit(ens, (x[held], y[held]), 0.1, seed=split)
        rates.append(float(detector.flag(x[asked], generator=seeded(split)).double().mean()))
    found = torch.tensor(rates, dtype=torch.float64)
    # Calibrating on 99 and asking 101 examples has a standard deviation of about 0.1·0.9·(1/99 + 1/101).
    deviation = math.sqrt(0.1 * 0.9 * (1 / 99 + 1 / 101) / len(rates))
    assert found.mean() <= 0.1 + 4 * deviation
    assert found.mean() >= 0.1 - 4 * deviation


@pytest.mark.parametrize("score", SCORE_NAMES)
def test_batches_and_single_examples_give_the_same_answer_under_nearest(
    score: str, random_ensemble: Setting
) -> None:
    ens, x, y = random_ensemble
    set_rounding(ens, "nearest")
    detector = Detector.fit(ens, (x[:120], y[:120]), 0.1, score=score)
    asked = x[120:150]
    whole = detector.examine(asked)
    single = [detector.examine(asked[i : i + 1]) for i in range(len(asked))]
    scores = torch.cat([verdict.score for verdict in single])
    torch.testing.assert_close(scores, whole.score, rtol=1e-3, atol=1e-6)
    # Float sums depend on the batch: an example at the threshold itself may fall on either side of it.
    clear = (whole.score - detector.threshold).abs() > 1e-3 * (abs(detector.threshold) + 1e-3)
    assert torch.equal(torch.cat([v.flagged for v in single])[clear], whole.flagged[clear])
    assert torch.equal(torch.cat([v.prediction for v in single]), whole.prediction)


def test_batches_and_single_examples_agree_within_their_interval_under_sample(
    random_ensemble: Setting,
) -> None:
    ens, x, y = random_ensemble
    detector = Detector.fit(ens, (x[:120], y[:120]), 0.2)
    asked, repeats = x[120:124], 30
    together = torch.stack([detector.score(asked, generator=seeded(s)) for s in range(repeats)])
    alone = torch.stack(
        [
            torch.cat(
                [detector.score(asked[i : i + 1], generator=seeded(1000 + 10 * s + i)) for i in range(4)]
            )
            for s in range(repeats)
        ]
    )
    error = ((together.var(0) + alone.var(0)) / repeats) ** 0.5
    assert ((together.mean(0) - alone.mean(0)).abs() <= 4.5 * error).all()
    assert (together.std(0) > 0).all()


def test_prediction_and_score_come_from_the_same_draws(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    detector = Detector.fit(ens, (x[:60], y[:60]), score="entropy")
    verdict = detector.examine(x[60:80], generator=seeded(3))
    logits = ens.member_logits(x[60:80], ens.draws, generator=seeded(3)).double()
    mean = logits.softmax(-1).mean((0, 1))
    assert torch.equal(verdict.prediction, mean.argmax(-1))
    torch.testing.assert_close(verdict.score, -(mean * mean.log()).sum(-1), rtol=1e-9, atol=1e-12)
    with noise(seeded(3)):
        assert torch.equal(detector.score(x[60:80]), verdict.score)


@pytest.mark.parametrize("score", SCORE_NAMES)
def test_a_saved_detector_and_ensemble_come_back(
    score: str, random_ensemble: Setting, tmp_path: Path
) -> None:
    ens, x, y = random_ensemble
    detector = Detector.fit(ens, (x[:120], y[:120]), 0.1, score=score, draws=2, fit_data=(x[200:], y[200:]))
    detector.save(tmp_path / "detector.safetensors")
    save(ens, tmp_path / "ensemble.safetensors")
    again = Detector.load(tmp_path / "detector.safetensors", load_ensemble(tmp_path / "ensemble.safetensors"))
    assert (again.draws, again.false_alarm_rate, again.threshold) == (2, 0.1, detector.threshold)
    first = detector.examine(x[120:140], generator=seeded(1))
    second = again.examine(x[120:140], generator=seeded(1))
    assert torch.equal(first.score, second.score)
    assert torch.equal(first.p_value, second.p_value)
    assert torch.equal(first.flagged, second.flagged)


def test_another_ensemble_is_refused(random_ensemble: Setting, tmp_path: Path) -> None:
    ens, x, y = random_ensemble
    path = tmp_path / "detector.safetensors"
    detector = Detector.fit(ens, (x[:60], y[:60]))
    detector.save(path)
    with pytest.raises(InputError, match=r"fitted for another ensemble.*fingerprint"):
        Detector.load(path, untrained(seed=1)[0])
    coarse = copy.deepcopy(ens)
    set_rounding(coarse, "nearest")
    with pytest.raises(InputError, match="fitted for another ensemble"):
        Detector.load(path, coarse)
    for setting, value in (("noise", "logistic"), ("granularity", "example")):
        other = copy.deepcopy(ens)
        setattr(list(quantizers(other))[-1], setting, value)
        with pytest.raises(InputError, match="fitted for another ensemble"):
            Detector.load(path, other)
    Detector.load(path, copy.deepcopy(ens))
    with torch.no_grad():
        next(ens.parameters()).add_(1e-3)
    with pytest.raises(InputError, match="fitted for another ensemble"):
        detector.flag(x[:2])
    with torch.no_grad():
        next(ens.parameters()).copy_(next(coarse.parameters()))
    assert detector.flag(x[:2]).shape == (2,)


def test_the_fingerprint_depends_on_weights_only() -> None:
    a, b = untrained()[0], untrained()[0]
    assert fingerprint(a) == fingerprint(b)
    a.eval()
    a.chunk = 3
    assert fingerprint(a) == fingerprint(b)
    with torch.no_grad():
        list(b.parameters())[-1].view(-1)[0] += 1e-6
    assert fingerprint(a) != fingerprint(b)


def test_nothing_is_left_behind(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    ens.train()
    ens.members[0].eval()
    state = {name: value.clone() for name, value in ens.state_dict().items()}
    before = torch.random.get_rng_state()
    detector = Detector.fit(ens, (x[:60], y[:60]), score="gaussian_density", fit_data=(x[100:], y[100:]))
    detector.flag(x[:5])
    assert torch.equal(before, torch.random.get_rng_state())
    assert ens.training
    assert not ens.members[0].training
    assert all(torch.equal(value, state[name]) for name, value in ens.state_dict().items())
    assert all(parameter.grad is None for parameter in ens.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in ens.modules())


def test_equal_seeds_give_equal_detectors(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    first, second, third = (
        Detector.fit(ens, (x[:60], y[:60]), score="combination", fit_data=(x[100:], y[100:]), seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.calibration, second.calibration)
    assert not torch.equal(first.calibration, third.calibration)


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.01, 99), (0.5, 1), (0.3, 3), (0.1, 9)])
def test_the_minimum_of_calibration_examples_is_named(
    rate: float, needed: int, random_ensemble: Setting
) -> None:
    ens, x, y = random_ensemble
    assert minimum_examples(rate) == needed
    assert 1 / (needed + 1) <= rate + 1e-12
    Detector.fit(ens, (x[:needed], y[:needed]), rate)
    if needed > 1:
        few = (x[: needed - 1], y[: needed - 1])
        with pytest.raises(InputError, match=rf"{needed - 1} calibration examples.*needs {needed} or more"):
            Detector.fit(ens, few, rate)
    least = max(2 * needed - 1, 4)
    fewer = (x[: least - 1], y[: least - 1])
    for score in (*FITTED, COMBINATION):
        with pytest.raises(InputError, match=f"needs {least} or more, or fit_data"):
            Detector.fit(ens, fewer, rate, score=score)
        found = Detector.fit(ens, (x[:least], y[:least]), rate, score=score)
        assert len(found.calibration) == max(needed, 2)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_rates_outside_the_unit_interval_are_refused(rate: float, random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    with pytest.raises(InputError, match="false_alarm_rate is"):
        Detector.fit(ens, (x[:60], y[:60]), rate)


def test_networks_without_weights_have_detectors_too() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] + torch.rand(len(x), 3)

    x = torch.rand(60, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    detector = Detector.fit(Ensemble([Noisy()], draws=2), (x, torch.zeros(60).long()), 0.1, score="entropy")
    assert detector.score(x[:5]).shape == (5,)


def test_scores_that_are_nan_are_named(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    with pytest.raises(InputError, match="'entropy' is NaN or infinite for 1 of the calibration examples"):
        with_scores(torch.cat([torch.rand(30), torch.tensor([math.nan])]), 0.1)
    detector = Detector.fit(ens, (x[:60], y[:60]), score="entropy")

    def broken(outputs: Tensor) -> Tensor:
        return torch.full(outputs.shape[2:3], math.nan, dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCORES, "entropy", broken)
        with pytest.raises(InputError, match="'entropy' is NaN for 3 of 3 images"):
            detector.score(x[:3])


def test_other_bad_input_is_named(random_ensemble: Setting, tmp_path: Path) -> None:
    ens, x, y = random_ensemble
    with pytest.raises(InputError, match=r"score is 'entrop'.*did you mean 'entropy'"):
        Detector.fit(ens, (x[:60], y[:60]), score="entrop")
    with pytest.raises(InputError, match="draws is 0"):
        Detector.fit(ens, (x[:60], y[:60]), draws=0)
    with pytest.raises(InputTypeError, match=r"needs a squint\.Ensemble, got Linear"):
        Detector.fit(nn.Linear(2, 2), (x[:60], y[:60]))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NaN"):
        Detector.fit(ens, (x[:60], y[:60])).score(torch.full_like(x[:1], math.nan))
    save(ens, tmp_path / "ensemble.safetensors")
    with pytest.raises(InputError, match=r"not written by Detector\.save"):
        Detector.load(tmp_path / "ensemble.safetensors", ens)
    with pytest.raises(InputError, match="does not exist"):
        Detector.load(tmp_path / "nothing.safetensors", ens)


def test_features_need_a_linear_layer() -> None:
    member = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    ens = Ensemble([member, copy.deepcopy(member)], 1)
    x = torch.rand(80, 1, 8, 8, generator=derive_generator(0))
    with pytest.raises(InputError, match="has no linear layer"):
        Detector.fit(ens, (x, torch.zeros(80, dtype=torch.int64)), score="neighbours")
