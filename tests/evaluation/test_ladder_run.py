"""Many images: scores under every rule, folders that are taken up again, fixed draws, bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from squint._checks import InputError
from squint._random import derive_generator, next_seed
from squint.attacks.objectives import log_mean_probability
from squint.data.dataset import to_unit
from squint.evaluation.batch_outcomes import digest
from squint.evaluation.budgets import tiny
from squint.evaluation.ladder_result import LadderResult
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.scoring_rules import FixedDraws, known_randomness, margin_summary, sweep, to_bytes
from squint.evaluation.selection import DEPLOYED, SINGLE
from tests.evaluation.ladder_models import Coin, NoisyPair, pair_data, small_ensemble

EPS = 0.05


def small_run(model: nn.Module, data: tuple[Tensor, Tensor], **options: Any) -> LadderResult:
    arguments: dict[str, Any] = {"batch_size": 3, "counts": (1, 4), "resubmissions": 40, **options}
    return run_ladder(model, data, EPS, tiny(steps=3), **arguments)


def tensors(result: LadderResult) -> dict[str, Tensor]:
    """Return everything of a result but its seconds."""
    climbed = result.climb
    known = {"known": result.known_wrong, "known clean": result.known_clean_wrong}
    return {
        **{f"point {rule}": point for rule, point in climbed.points.items()},
        **{f"margin {rule}": margin for rule, margin in climbed.margins.items()},
        "broken_by": climbed.broken_by,
        "gradients": climbed.gradients,
        "forwards": climbed.forwards,
        "clean": result.clean.errors,
        "deployed": result.deployed.errors,
        "single": result.single.single_errors,
        "rounded": result.rounded.errors,
        "bytes": result.points_uint8,
        "margins": result.margins,
        **{f"S={point.draws}": point.errors for point in result.sweep},
        **{name: value for name, value in known.items() if value is not None},
    }


def same(a: LadderResult, b: LadderResult) -> bool:
    first, second = tensors(a), tensors(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class StoppedError(Exception):
    pass


def test_resuming_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    model = NoisyPair()
    data = pair_data(model, 8, margin=0.4)
    whole = small_run(model, data)

    def stop(rung: str, alive: int, done: int) -> None:
        del alive
        if done == 6 and rung == "apgd":
            raise StoppedError

    with pytest.raises(StoppedError):
        small_run(model, data, folder=tmp_path, progress=stop)
    assert sorted(p.name for p in tmp_path.glob("batch*.json")) == ["batch-00000.json", "batch-00001.json"]
    seen: list[tuple[str, int, int]] = []
    resumed = small_run(model, data, folder=tmp_path, progress=lambda *what: seen.append(what))
    assert same(resumed, whole)
    assert [what for what in seen if what[0] == "done"] == [("done", 0, 3), ("done", 0, 6), ("done", 0, 8)]
    assert seen[2][0] == "targeted", "only the last batch is attacked"
    assert same(small_run(model, data, folder=tmp_path), whole), "a finished folder is read"


def test_a_batch_that_was_half_written_is_done_again(tmp_path: Path) -> None:
    model = NoisyPair()
    data = pair_data(model, 4, margin=0.4)
    whole = small_run(model, data, folder=tmp_path)
    (tmp_path / "batch-00001-of-1.json").unlink()
    (tmp_path / "batch-00001-of-1.npz").write_bytes(b"half")
    assert same(small_run(model, data, folder=tmp_path), whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"draws": 2}, "draws"),
        ({"batch_size": 2}, "batch_size"),
        ({"sources": {"other": NoisyPair(seed=1)}}, "sources"),
        ({"data": pair_data(NoisyPair(), 3, margin=0.41)}, "data, model"),
        ({"model": NoisyPair(seed=2)}, "model"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    model = NoisyPair()
    arguments: dict[str, Any] = {"model": model, "data": pair_data(model, 3, margin=0.4)}
    small_run(**arguments, folder=tmp_path, known=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=f"another configuration, which differs in {named};"):
        small_run(**{**arguments, **change}, folder=tmp_path, known=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    model = NoisyPair()
    data = pair_data(model, 2, margin=0.4)
    (tmp_path / "configuration.json").write_text("[1]")
    with pytest.raises(InputError, match="no configuration of format 3"):
        small_run(model, data, folder=tmp_path)
    (tmp_path / "configuration.json").unlink()
    small_run(model, data, folder=tmp_path, known=False)
    (tmp_path / "batch-00000-of-2.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="no whole npz file"):
        small_run(model, data, folder=tmp_path, known=False)


def test_a_summary_is_plain_and_complete() -> None:
    model = NoisyPair(scale=0.05)
    reach = EPS * float(model.weight.detach().abs().sum())
    near, y = pair_data(model, 3, margin=0.3 * reach)
    far, z = pair_data(model, 3, margin=2.0 * reach, seed=1)
    result = run_ladder(
        model, (torch.cat([near, far]), torch.cat([y, z])), EPS, tiny(steps=8), resubmissions=400
    )
    summary = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert (summary["clean_accuracy"], summary["robust_accuracy"]) == (1.0, 0.5)
    assert summary["ci95"][0] < 0.5 < summary["ci95"][1]
    assert summary["persistent"] == {"1": 0.5, "10": 0.5, "100": 0.5}
    assert summary["clean_persistent"] == {"1": 1.0, "10": 1.0, "100": 1.0}
    assert summary["known_randomness_accuracy"] == 0.5
    assert summary["known_randomness_clean_accuracy"] == 1.0
    assert summary["uint8_accuracy"] == 0.5
    assert [p["draws"] for p in summary["sweep"]] == [1, 4, 16, 64]
    assert [p["resubmissions"] for p in summary["sweep"]] == [400, 256, 64, 16]
    assert all(p["accuracy"] == 0.5 and p["seconds_per_image"] > 0 for p in summary["sweep"])
    assert summary["broken_by"] == {"targeted": 3, "apgd": 0}
    assert (summary["unbroken"], summary["broken_on_clean"]) == (3, 0)
    assert summary["gradients_per_broken"] == pytest.approx(6 * summary["gradients_per_image"] / 3)
    assert summary["eps"] == "0.05"


def test_an_ensemble_is_never_easier_for_the_ladder_than_for_one_point() -> None:
    """The kept points do at least as well as the clean images, and stay in the ball."""
    model = small_ensemble(2)
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    result = small_run(model, (x, y))
    assert result.deployed.accuracy <= result.clean.accuracy
    for rule in (DEPLOYED, SINGLE):
        assert float((result.climb.points[rule] - x).abs().max()) <= EPS + 1e-6
    assert result.known_wrong is not None
    assert len(result.sweep) == 2


def test_fixed_draws_are_those_of_a_single_image() -> None:
    """Whatever batch an image is in, it meets the noise that it would meet alone."""
    ensemble = small_ensemble(2)
    pair = NoisyPair()
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for model in (ensemble, pair):
        fixed = FixedDraws(model, 3, seed=11)
        alone = torch.cat(
            [
                log_mean_probability(
                    model.member_logits(x[i : i + 1], 3, generator=torch.Generator().manual_seed(11))
                )
                for i in range(5)
            ]
        )
        torch.testing.assert_close(fixed(x), alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fixed(x[2:4]), alone[2:4], atol=1e-5, rtol=1e-5)
        assert not torch.equal(FixedDraws(model, 3, seed=12)(x), fixed(x))
    net = ensemble.members[0]
    plain = FixedDraws(net, 1, seed=3)
    assert torch.equal(plain(x), plain(x))
    torch.testing.assert_close(plain(x)[1:2], plain(x[1:2]), atol=1e-6, rtol=1e-6)
    called = FixedDraws(lambda t: net(t), 1, seed=3)
    assert torch.equal(called(x), called(x))


def test_known_randomness_finds_the_worst_case_of_the_fixed_set() -> None:
    model = NoisyPair(scale=0.5)
    reach = EPS * float(model.weight.detach().abs().sum())
    x, y = pair_data(model, 12, margin=reach)
    found = known_randomness(model, x, y, EPS, tiny(steps=10), draws=4, seed=0, system="s", batch=0)
    assert found is not None
    fixed = FixedDraws(model, 4, next_seed(derive_generator(0, "known", "s")))
    worst = fixed(model.worst(x, y, EPS)).argmax(1) != y
    assert torch.equal(found.wrong, worst)


def test_noise_out_of_reach_cannot_be_known() -> None:
    generator = torch.Generator().manual_seed(0)

    def model(t: Tensor) -> Tensor:
        return t.flatten(1)[:, :2] + torch.rand(len(t), 2, generator=generator)

    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    assert known_randomness(model, x, y, EPS, tiny(1), draws=1, seed=0, system="s", batch=0) is None


def test_a_sweep_meets_the_binomial() -> None:
    """Of three equally sure draws two decide: the error is P(Bin(3, p) >= 2)."""
    p, n = 0.3, 50
    model, x, y = Coin(p), torch.full((n, 1, 4, 4), 0.5), torch.zeros(n, dtype=torch.int64)
    for point in sweep(model, x, y, resubmissions=60, seed=0, keys=("t",), counts=(1, 3)):
        expected = float(stats.binom.sf(point.draws // 2, point.draws, p))
        error = math.sqrt(expected * (1 - expected) / (n * 60))
        assert float(point.errors.double().mean()) / 60 == pytest.approx(expected, abs=4 * error)
        assert point.resubmissions == 60


def test_margins_are_summarised() -> None:
    summary = margin_summary(torch.tensor([-0.05, 0.05, 1.0, 2.0, math.inf]))
    assert summary["below_0.1"] == 0.4
    assert summary["q50"] == pytest.approx(1.0)


@given(st.integers(0, 10_000), st.floats(0, 0.3), st.booleans())
def test_bytes_stay_in_the_ball(seed: int, eps: float, gray_levels: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 1, 3, 3, generator=generator)
    if gray_levels:
        x = (x * 255).round() / 255
    point = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    rounded = to_unit(to_bytes(point, x, eps))
    distance = (rounded - x).abs()
    # A byte of its own lies within half a grey level of any pixel; on the grey levels none is needed.
    assert float(distance.max()) <= (eps if gray_levels else max(eps, 1 / 510)) + 1e-5
    assert float((rounded - point).abs().max()) <= max(1 / 255, 1 / 510 + eps) + 1e-5


def test_corners_of_byte_sized_balls_survive_rounding() -> None:
    x = torch.tensor([[[[0.0, 10.0, 200.0, 255.0]]]]) / 255
    point = (x + torch.tensor([5.0, -5.0, 5.0, -5.0]) / 255).clamp(0, 1)
    assert to_bytes(point, x, 5 / 255).flatten().tolist() == [5, 5, 205, 250]


def test_digests_tell_models_and_data_apart() -> None:
    a, b = NoisyPair(seed=0), NoisyPair(seed=1)
    assert digest(a) == digest(NoisyPair(seed=0)) != digest(b)
    x = torch.arange(6.0)
    assert digest(x) != digest(x.view(2, 3)) != digest(x.double())
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(1))


def test_bad_arguments_are_refused() -> None:
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="draws is 4; allowed: 1 for a model without member_logits"):
        run_ladder(lambda t: t.flatten(1), (x, y), EPS, tiny(1), draws=4)
    with pytest.raises(InputError, match="eps is '5/0'"):
        run_ladder(NoisyPair(), (x, y), "5/0", tiny(1))
    with pytest.raises(InputError, match="batch_size is 0"):
        run_ladder(NoisyPair(), (x, y), EPS, tiny(1), batch_size=0)
