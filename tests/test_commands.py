"""The verbs that work on what a run left behind, through `main`, on one tiny run."""

from __future__ import annotations

import csv
import json
import secrets
from pathlib import Path

import numpy as np
import pytest
import torch

import squint
import squint.study.run
from squint.cli import main
from squint.commands.targets import load_target
from squint.evaluation.evidence_files import Evidence, save_evidence
from squint.export.sizes import info_table
from tests.study.finished import EPS, N, clean_images, done, finished, refused, with_evidence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with evidence on its ensemble; verbs add files of their own."""
    return with_evidence(finished(tmp_path_factory.mktemp("commands") / "run"))


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    for verb in ("detect", "profile", "verify", "break", "compare", "info", "export", "predict"):
        assert f"squint {verb} " in usage
        assert f"squint {verb} " in done(capsys, verb, "--help")  # the examples
        assert "Missing" in refused(capsys, verb)


def test_profile(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--threats", "linf-pgd", "noise-linf", "--images", N, "--resubmissions", 4, "--draws", 4)
    out = done(capsys, "profile", run, *words)
    assert "Spearman correlation of information and accuracy, Two noisy members" in out
    assert "leaving out linf-pgd" in out
    assert "left out: plain, a single network" in out
    plane = json.loads((run / "plane.json").read_text())
    points = [(row["threat"], row["eps"]) for row in plane["rows"]]
    assert points == [("clean", "0")] + [(t, e) for t in words[1:3] for e in ("8/255", "24/255")]
    assert {row["system"] for row in plane["rows"]} == {"noisy"}
    assert plane["left_out"] == ["plain"]
    rows = list(csv.DictReader((run / "plane.csv").read_text().splitlines()))
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in plane["rows"]]


def test_detect(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = done(
        capsys, "detect", run, "--images", 8, "--steps", 3, "--resubmissions", 4, "--adaptive", "agreement"
    )
    assert "noisy, predictive_information at eps 24/255" in out
    assert "UNTRUSTED" in out
    assert "left out: plain" in out
    (record,) = json.loads((run / "detection.json").read_text())["records"]
    assert (record["system"], record["n"], record["eps"]) == ("noisy", 8, "24/255")


def test_verify(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "verified.json"
    out = done(capsys, "verify", run, "--seed", 7, "--output", output)
    assert "noisy at eps 24/255: " in out
    assert "on seed 7" in out
    (figures,) = json.loads(output.read_text())
    assert figures["agrees"]
    assert (figures["n"], figures["seed"]) == (N, 7)
    file = run / "evidence" / "noisy.npz"
    assert done(capsys, "verify", file, "--seed", 7) == out  # the weights of its own run
    monkeypatch.setattr(secrets, "randbits", lambda _: 11)
    assert "on seed 11" in done(capsys, "verify", file)  # a fresh one, which is printed


def test_verify_says_so_where_a_figure_does_not_hold(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = clean_images()
    model = run / "weights" / "plain.safetensors"
    with torch.no_grad():
        accuracy = float((squint.load(model)(x).argmax(1) == y).double().mean())
    claimed = torch.full((N,), 0.0 if accuracy > 0.5 else 1.0, dtype=torch.float64)
    images, nothing = (255 * x).round().to(torch.uint8), torch.full((N,), -1)
    evidence = Evidence(torch.arange(N), y, images, nothing, claimed, 64, EPS, "plain")
    save_evidence(tmp_path / "false.npz", evidence)
    out = done(capsys, "verify", tmp_path / "false.npz", "--model", model, code=3)
    assert "DIFFERS" in out


def challenge(path: Path, step: float, n: int = 6) -> Path:
    x, y = clean_images()
    np.savez(path, images=(x[:n] + step).clamp(0, 1).numpy(), index=np.arange(n), labels=y[:n].numpy())
    return path


def test_break(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = challenge(tmp_path / "mine.npz", 8 / 255)
    weights, record = run / "weights" / "noisy.safetensors", run / "evidence" / "noisy.npz"
    output = tmp_path / "broken.json"
    out = done(capsys, "break", weights, file, "--eps", "24/255", "--record", record, "--output", output)
    assert "the record stands" in out or "BROKEN" in out
    (figures,) = json.loads(output.read_text())
    assert figures["n"] == 6
    assert figures["record_accuracy"] is not None
    # The run's own radius and evidence are what is meant where none are named.
    assert done(capsys, "break", run, file, "--system", "noisy") in out
    out = done(capsys, "break", run, file, "--system", "noisy", "--eps", "25/255")
    assert "no record to hold them against" in out
    assert f"{figures['accuracy']:.1%}" in out


def test_info(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("squint.commands.info.attacked_images")  # nothing of the data set is read
    output = tmp_path / "info.json"
    out = done(capsys, "info", run, "--output", output)
    sizes = json.loads(output.read_text())
    assert list(sizes) == ["plain", "noisy"]
    expected = info_table(squint.load(run / "weights" / "noisy.safetensors"), (1, 8, 8))
    assert sizes["noisy"]["bit_operations"] == expected.bit_operations
    assert len(sizes["noisy"]["layers"]) == len(expected.layers)
    assert f"noisy in all: {expected.parameters:,} parameters, {expected.packed_bytes:,} bytes" in out


def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, junk = run / "weights" / "plain.safetensors", tmp_path / "junk.npz"
    junk.write_text("junk")
    net = squint.quantize(squint.models.small_cnn(width=4))
    squint.calibrate(net, torch.rand(8, 3, 8, 8))
    coloured = tmp_path / "coloured.safetensors"
    squint.save(squint.Ensemble([net]), coloured)
    mine = challenge(tmp_path / "mine.npz", 8 / 255)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(weights.read_bytes())
    bare = tmp_path / "bare"
    (bare / "weights").mkdir(parents=True)
    (bare / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    (bare / "weights" / "plain.safetensors").write_bytes(weights.read_bytes())
    for words, message in (
        (("profile", tmp_path / "no"), "no is not there; needed: a run folder"),
        (("profile", weights), "is a file; needed: a run folder"),
        (("profile", bare), "has no system of two members or more (plain)"),
        (("profile", run, "--threats", "linf"), "threat is 'linf'; allowed: linf-pgd"),
        (("profile", run, "--images", 1), "images is 1"),
        (("profile", run, "--images", 10**5), "images is 100000; allowed: a whole number in [2, "),
        (("profile", run, "--estimators", "x"), "estimators is 'x'; allowed: soft_label"),
        (("detect", bare), "has no ensemble and no stochastic network (plain)"),
        (("detect", run, "--steps", 0), "steps is 0"),
        (("detect", run, "--images", 0), "images is 0"),
        (("detect", run, "--scores", "x"), "score is 'x'; allowed: predictive_information"),
        (("verify", bare), "has no evidence yet: squint attack"),
        (("verify", run, "--model", weights), "--model goes with a file of evidence"),
        (("verify", mine), "name them with --model"),
        (("verify", mine, "--model", weights), "has no array 'format'"),
        (("verify", junk, "--model", weights), "is no whole npz file"),
        (("verify", tmp_path / "no.npz", "--model", weights), "no.npz does not exist"),
        (("break", run, mine, "--eps", "24/255"), "has the systems plain, noisy: name one with --system"),
        (("break", run, mine, "--eps", "24/255", "--system", "x"), "system is 'x'; allowed: plain, noisy"),
        (("break", weights, mine, "--eps", "1/255"), "lies 0.031373 from the clean one"),
        (("break", alone, mine), "lies in no run that names a radius: give --eps"),
        (("break", weights, mine, "--eps", "5/0"), "eps is '5/0'; allowed: a fraction such as 5/255"),
        (("info", tmp_path / "no"), "does not exist"),
        (("info", run, "--image-shape", 3, 32), "image_shape is (3, 32); allowed: (channels, height, width)"),
        (("info", run, "--image-shape", 3, 8, 8), "allowed for this network: (1, height, width)"),
        (("info", coloured), "(3, height, width); name another with --image-shape"),
        (("break", run, mine, "--system", "noisy", "--seed", -5), "seed is -5; allowed: a whole number"),
        (("verify", run, "--seed", -5), "seed is -5"),
        (("attack", run, "--seed", -5), "seed is -5"),
        (("verify", run, "--output", tmp_path), "which is a folder; allowed: a file"),
        (("attack", run, "--output", tmp_path), "which is a folder; allowed: a file"),
        (("attack", run, "--output", weights / "a.json"), "is not a folder that can be written into"),
        (("break", run, mine, "--system", "noisy", "--output", weights / "a.json"), "cannot write"),
        (("export", run, "--system", "noisy", "--output", tmp_path / "m.txt"), "a file that ends in .onnx"),
        (("export", run, "--rounding", "up"), "--rounding is 'up'; allowed: nearest, sample"),
        (("export", run, "--system", "x"), "system is 'x'; allowed: plain, noisy"),
    ):  # fmt: skip
        assert message in refused(capsys, *words), words


def test_evidence_of_another_system(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, record = challenge(tmp_path / "mine.npz", 8 / 255), run / "evidence" / "noisy.npz"
    plain = run / "weights" / "plain.safetensors"
    assert "is evidence of noisy" in refused(capsys, "verify", record, "--model", plain)
    assert "allowed for plain: its own" in refused(capsys, "break", plain, file, "--record", record)
    alone = tmp_path / "mine.safetensors"
    alone.write_bytes((run / "weights" / "noisy.safetensors").read_bytes())
    # Outside of a run weights may have been called anything: whose record it is, is said.
    out = done(capsys, "break", alone, file, "--eps", "24/255", "--record", record)
    assert "on the record's, of noisy, difference" in out


def test_evidence_of_a_system_that_is_not_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "evidence").mkdir()
    for source, place in (("config.yaml", "config.yaml"), ("evidence/noisy.npz", "evidence/gone.npz")):
        (tmp_path / place).write_bytes((run / source).read_bytes())
    (tmp_path / "weights" / "plain.safetensors").write_bytes((run / "weights/plain.safetensors").read_bytes())
    assert "is 'gone'; allowed: plain" in refused(capsys, "verify", tmp_path)


def test_a_target_knows_its_run(run: Path) -> None:
    target = load_target(run, "noisy")
    assert target.name == "noisy"
    assert target.recipe is not None
    assert target.recipe.name == "tiny"
    assert load_target(run / "weights" / "noisy.safetensors").recipe == target.recipe
