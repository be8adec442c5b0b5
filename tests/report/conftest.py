"""A run folder as a study leaves it, small and made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squint.report import write_report

Build = Callable[..., Path]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SYSTEMS = {  # name: title, tier, members, clean accuracy, loss of accuracy per 1/255
    "full_precision": ("Full-precision network", "A", 1, 0.788, 0.34),
    "lsq": ("Deterministic 4-bit network (LSQ)", "A", 1, 0.761, 0.28),
    "squint_a": ("squint: stochastic quantization, agreement, three members", "A", 3, 0.673, 0.075),
    "squint_b": ("squint with curvature penalty", "B", 3, 0.644, 0.052),
    "pgd_training": ("PGD adversarial training", "C", 1, 0.612, 0.046),
}


def make_record(system: str, k: int, **changes: Any) -> dict[str, Any]:
    _, tier, _, clean, slope = SYSTEMS[system]
    robust = max(0.0, clean - slope * k)
    record: dict[str, Any] = {
        "system": system, "attack": "pgd", "preset": "seed", "norm": "linf", "eps": f"{k}/255", "steps": 20,
        "eot": 1, "restarts": 1, "n": 1000, "draws": 4, "seed": 0, "clean_accuracy": clean,
        "clean_ci95": [clean - 0.03, clean + 0.03], "robust_accuracy": robust,
        "ci95": [max(0.0, robust - 0.03), robust + 0.03], "single_draw_accuracy": 0.95 * robust,
        "persistent_accuracy": 0.8 * robust,
        "persistent": {"1": robust, "10": 0.8 * robust, "100": 0.7 * robust},
        "seconds": 240.0, "red_flags": [], "trusted": True, "tier": tier,
    }  # fmt: skip
    return record | changes


def make_results() -> dict[str, Any]:
    flag = {
        "kind": "black_box_beats_white_box",
        "message": "Square finds adversarial points for images that PGD leaves standing",
        "measured": {"square": 0.561, "pgd": 0.648},
    }
    records = [make_record(name, k) for name in SYSTEMS for k in (2, 5, 8)]
    for record in records:
        if record["system"] == "lsq":
            record |= {"red_flags": [flag, "the gradient is zero on 3.1 % of the images"], "trusted": False}
    return {
        "format_version": 1,
        "versions": {"squint": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "hardware": {"cpu": "two cores", "gpu": "none"},
        "config_hash": "9f2b54d1c3a8e7706612",
        "recipe": "cifar10-small",
        "dataset": "CIFAR-10, 1,000 test images",
        "headline_eps": "5/255",
        "headline_attack": "pgd",
        "headline_system": "squint_a",
        "class_names": CLASSES,
        "systems": [
            {
                "name": name, "title": title, "tier": tier, "members": members,
                "parameters": 78_042 * members,
                "weight_bits": "4", "training_seconds": 1800.0 * members,
                "description": "ResNet-8 of width 16, six epochs; input at 2 bits with uniform noise.",
            }
            for name, (title, tier, members, *_) in SYSTEMS.items()
        ],
        "records": records,
        "plane": [
            {
                "system": name, "threat": threat, "eps": f"{k}/255", "information": 1.4 - 0.05 * k - 0.1 * i,
                "baseline": 0.04, "information_ci95": [1.35 - 0.05 * k - 0.1 * i, 1.45 - 0.05 * k - 0.1 * i],
                "accuracy": 0.7 - 0.05 * k * (1 - 0.3 * j),
                "accuracy_ci95": [0.67 - 0.05 * k * (1 - 0.3 * j), 0.73 - 0.05 * k * (1 - 0.3 * j)],
                "n": 500,
            }
            for i, name in enumerate(("squint_a", "squint_b"))
            for j, threat in enumerate(("linf gradient", "transfer", "equal-norm noise"))
            for k in (0, 2, 5, 8)
        ],
    }  # fmt: skip


def write_log(folder: Path) -> None:
    lines = ['{"event": "start", "recipe": "cifar10-small"}']
    for name in SYSTEMS:
        for epoch in range(1, 31):
            fall = float(np.exp(-epoch / 9))
            terms = {"member_ce": 0.8 + 1.4 * fall, "ensemble_ce": 0.0, "redundancy": 0.0}
            if name.startswith("squint"):
                terms |= {"conditional_redundancy": 0.12 * (1 - fall), "agreement": 0.3 * fall + 0.05}
            if name == "squint_b":
                terms["smoothness"] = 0.2 * fall + 0.1
            terms["total"] = sum(terms.values())
            lines.append(json.dumps({
                "event": "epoch", "system": name, "epoch": epoch, "epochs": 30, "terms": terms,
                "validation_accuracy": 0.7 - 0.3 * fall if epoch % 10 == 0 else None, "seconds": 60.0,
            }))  # fmt: skip
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def write_examples(folder: Path, name: str, n: int = 8, members: int = 3, channels: int = 3) -> None:
    rng = np.random.default_rng(len(name))
    y, x = np.mgrid[0:32, 0:32] / 31
    waves = [np.sin(5 * x + i) + np.cos(4 * y * (c + 1) + i) for i in range(n) for c in range(channels)]
    clean = (127 + 60 * np.array(waves)).clip(8, 247).astype(np.uint8).reshape(n, channels, 32, 32)
    step = rng.choice([-5, 5], size=clean.shape)
    label = rng.integers(0, 10, n)
    votes = np.where(rng.random((n, members)) < 0.6, label[:, None], rng.integers(0, 10, (n, members)))
    (folder / "examples").mkdir(exist_ok=True)
    np.savez(
        folder / "examples" / f"{name}.npz",
        index=np.arange(n) * 7,
        label=label,
        clean=clean,
        adversarial=(clean.astype(int) + step).astype(np.uint8),
        clean_votes=np.repeat(label[:, None], members, 1),
        adversarial_votes=votes,
        error_share=(votes != label[:, None]).mean(1),
    )


def build_run(
    folder: Path,
    results: dict[str, Any] | None = None,
    *,
    only_results: bool = False,
    examples: tuple[str, ...] = ("squint_a", "lsq"),
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(make_results() if results is None else results))
    if not only_results:
        (folder / "config.yaml").write_text(
            "recipe: cifar10-small\ntrain:\n  epochs: 30  # <b>not bold</b>\n"
        )
        write_log(folder)
        for name in examples:
            write_examples(folder, name, members=SYSTEMS[name][2])
    return folder


@pytest.fixture
def results() -> dict[str, Any]:
    """A full, valid `results.json`, free to be changed."""
    return make_results()


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """Make one valid record: record(system, k, **changes) at eps k/255."""
    return make_record


@pytest.fixture
def build() -> Build:
    """Write a run folder: build(folder, results, only_results=..., examples=...)."""
    return build_run


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a full run folder; read only."""
    return write_report(build_run(tmp_path_factory.mktemp("run")))
