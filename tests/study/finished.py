"""A tiny run that is finished, and how tests ask commands about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import squint
import squint.study.run
from squint import data as D
from squint.cli import main
from squint.evaluation.evidence_files import Evidence, save_evidence
from squint.evaluation.scoring import score
from squint.study.run import run_study
from tests.study.tiny import tiny

N = 20
EPS = 24 / 255


def finished(folder: Path) -> Path:
    """Run the tiny study, without its report, and return its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(squint.study.run, "write_report", lambda _: None)
        run_study(tiny(), folder)
    return folder


def with_evidence(run: Path) -> Path:
    """Add adversarial images of its ensemble to a finished run, and return its folder."""
    ens, (x, y) = squint.load(run / "weights" / "noisy.safetensors"), clean_images()
    moved = squint.attacks.pgd(ens, x, y, eps=EPS, steps=5, generator=torch.Generator().manual_seed(0))
    images = (255 * moved).round().to(torch.uint8)
    scores = score(ens, images / 255, y, draws=ens.draws, resubmissions=64, seed=5, keys=("test",))
    nothing = torch.full((N,), -1)
    evidence = Evidence(torch.arange(N), y, images, nothing, scores.correct.double(), 64, EPS, "noisy")
    save_evidence(run / "evidence" / "noisy.npz", evidence)
    return run


def clean_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the test images that the tiny study attacks, and their labels."""
    return D.load("digits").test.subset(range(N)).pair()


def done(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    """Return what a command prints."""
    capsys.readouterr()
    assert main([*map(str, words), "--quiet"]) == code
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Return the one line with which a command refuses its input."""
    capsys.readouterr()
    assert main([*map(str, words), "--quiet"]) == 2, words
    line = capsys.readouterr().err
    assert line.startswith("squint: ")
    assert line.count("\n") == 1
    return line
