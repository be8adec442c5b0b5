"""The command line through `main`: exit codes, messages, and one run from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import squint
import squint.cli
import squint.study.run
from squint._files import read_tensors, write_tensors
from squint.cli import main
from squint.study.recipes import to_yaml
from tests.study.tiny import tiny


def recipe_file(folder: Path, **changes: Any) -> str:
    path = folder / "tiny.yaml"
    small = {"train": {"epochs": 1}, "attack": {"images": 6, "resubmissions": 2}, "curve": []}
    path.write_text(to_yaml(tiny(**(small | changes))))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made by `squint run`; read only."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        # Drawing is what takes the time; `squint report` does it below.
        patch.setattr(squint.study.run, "write_report", lambda _: None)
        assert main(["run", recipe_file(folder), "--quiet", "--output", str(folder / "run")]) == 0
    return folder / "run"


def failure(capsys: pytest.CaptureFixture[str], *words: object, code: int = 2) -> str:
    """Return the one line that a failing command writes to standard error."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    line = captured.err
    assert line.startswith("squint: ")
    assert line.count("\n") == 1
    assert "Traceback" not in line
    return line


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("run", "train", "attack", "report", "recipes"):
        assert f"squint {command}" in text
    assert "--quiet" in text
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert squint.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "train"])
def test_help_of_a_study(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"squint {command} digits --output" in text
    assert "ablation-digits, cifar10, cifar10-small, cifar10-small-tier-b, digits" in text
    assert main([command]) == 2
    assert main([command, "digits", "--help"]) == 0
    assert "--train.epochs INT" in capsys.readouterr().out


def test_help_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "--help"]) == 0
    text = capsys.readouterr().out
    assert "squint attack runs/digits --eps 16/255 32/255" in text
    assert "pgd (the seed protocol)" in text
    assert main(["report", "--help"]) == 0
    assert main(["recipes"]) == 0
    assert "fashion-mnist" in capsys.readouterr().out


def test_a_run_leaves_the_whole_folder(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert [record["system"] for record in results["records"]] == ["plain", "noisy"]
    assert (run / "weights" / "noisy.safetensors").is_file()


def test_a_run_is_not_replaced_by_accident(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(squint.study.run, "write_report", lambda _: None)
    recipe = recipe_file(run.parent)
    message = failure(capsys, "run", recipe, "--output", run)
    assert "exists: continue it with --resume or replace it with --overwrite" in message
    message = failure(capsys, "run", recipe, "--output", run, "--resume", "--train.epochs", 2)
    assert "train.epochs (was 1, now 2)" in message
    assert main(["run", recipe, "--output", str(run), "--resume", "--quiet"]) == 0
    assert "Two noisy members" in capsys.readouterr().out.replace("\n", " ")


def test_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "UNTRUSTED" in out
    assert "report.html" in out
    assert (run / "report.html").is_file()
    assert "no results.json" in failure(capsys, "report", run.parent)


def test_attack(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "records.json"
    words = ["attack", str(run), "--images", "3", "--eps", "8/255", "--attacks", "fgsm", "--quiet"]
    assert main([*words, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["plain", "noisy"]
    records = json.loads(output.read_text())
    assert [(r["system"], r["attack"], r["eps"], r["n"]) for r in records] == [
        ("plain", "fgsm", "8/255", 3), ("noisy", "fgsm", "8/255", 3),
    ]  # fmt: skip


def test_attack_members_alone(run: Path, tmp_path: Path) -> None:
    """A member alone is scored as an ensemble of one; what has a single member is not attacked twice."""
    output = tmp_path / "records.json"
    words = [
        "attack",
        str(run),
        "--images",
        "3",
        "--eps",
        "8/255",
        "--attacks",
        "fgsm",
        "--quiet",
        "--members",
    ]
    assert main([*words, "--output", str(output)]) == 0
    records = json.loads(output.read_text())
    assert [r["system"] for r in records] == ["plain", "noisy", "noisy-member-1", "noisy-member-2"]
    assert len({r["draws"] for r in records[1:]}) == 1
    whole = squint.load(run / "weights" / "noisy.safetensors")
    test = squint.data.load("digits").test
    for member, record in zip(whole.members, records[2:], strict=True):
        alone = squint.Ensemble([member], whole.draws)
        report = squint.evaluate(
            alone, test, ["8/255"], ["fgsm"], system=record["system"], limit=3, resubmissions=2
        )
        assert report.records[0].robust_accuracy == record["robust_accuracy"]


def test_attack_some_systems_or_members(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "records.json"
    words = ["attack", str(run), "--images", "3", "--eps", "8/255", "--attacks", "fgsm", "--quiet"]
    words = [*words, "--members", "--output", str(output), "--systems", "plain", "noisy-member-2"]
    assert main(words) == 0
    assert [r["system"] for r in json.loads(output.read_text())] == ["plain", "noisy-member-2"]
    assert main([*words, "nope"]) == 2
    assert (
        "systems is 'nope'; allowed: plain, noisy, noisy-member-1, noisy-member-2" in capsys.readouterr().err
    )


def test_attack_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "weights" / "plain.safetensors"
    cut, foreign, other = (tmp_path / f"{name}.safetensors" for name in ("cut", "foreign", "other"))
    cut.write_bytes(weights.read_bytes()[:1000])
    tensors, metadata = read_tensors(weights)
    write_tensors(foreign, tensors, {})
    write_tensors(other, dict(list(tensors.items())[1:]), metadata)
    for words, message in (
        ((tmp_path / "no.safetensors",), "does not exist"),
        ((cut,), "cut.safetensors is no whole safetensors file"),
        ((foreign,), "foreign.safetensors was not written by squint.save"),
        ((other,), "weights of another architecture"),
        ((weights, "--eps", "5/0"), "eps is '5/0'; allowed: a fraction such as 5/255"),
        ((weights, "--eps", "-1/255"), "eps is -0.00392"),
        ((weights, "--attacks", "pgd", "nope"), "attacks is 'nope'; allowed: seed, pgd"),
        ((weights, "--dataset", "mnist"), "'mnist'; allowed: digits"),
        ((weights, "--images", "0"), "images is 0"),
        ((weights, "--draws", "x"), "--draws is 'x'; allowed: None or a whole number"),
        ((weights, "--imagse", "5"), "unknown option --imagse (did you mean '--images'?)"),
        ((), "PATH"),
    ):
        assert message in failure(capsys, "attack", *words), words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ruin", "digits"), "command is 'ruin'; allowed: run, train, attack"),
        (("run", "digitz"), "recipe is 'digitz'; allowed: "),
        (("run", "digitz"), "(did you mean 'digits'?)"),
        (("run", "no.yaml"), "recipe file no.yaml does not exist"),
        (("run", "--eps", "5/255"), "the recipe comes first: squint run RECIPE --eps ..."),
        (("run", "digits", "--train.epochs", "five"), "--train.epochs is 'five'; allowed: a whole number"),
        (("run", "digits", "--train.epochs", "-1"), "train.epochs is -1; allowed: greater than or equal to"),
        (("run", "digits", "--train.epoch", "5"), "--train.epoch (did you mean '--train.epochs'?)"),
        (("run", "digits", "--eps", "5/0"), "eps is '5/0'; allowed: a fraction such as 5/255"),
        (("run", "digits", "--eps", "-1/255"), "eps is '-1/255'; allowed: a number in [0, 1]"),
        (("run", "digits", "--systems.stochastic.members.0.weight-bits", "9"), "weight_bits is 9; allowed:"),
        (("run", "cifar10", "--data-dir", "no/such"), "data_dir is 'no/such'; allowed: a folder that exists"),
        (("train", "digits", "--model", "vgg"), "model is 'vgg'; allowed: small_cnn"),
        (("run", "digits", "--resume", "--overwrite"), "--resume and --overwrite exclude each other"),
        (("recipes", "x"), "squint recipes takes no arguments; got 'x'"),
    ],
)  # fmt: skip
def test_bad_input(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_with_two_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("eps: 5/0\ntrain: {epoch: 3}\nsystems: {a: {}}\n")
    line = failure(capsys, "run", path, "--output", tmp_path / "run")
    assert "bad.yaml: " in line
    assert "unknown key train.epoch (did you mean 'epochs'?)" in line
    assert "eps is '5/0'" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    recipe = recipe_file(tmp_path)
    assert "cannot write" in failure(capsys, "run", recipe, "--output", tmp_path / "file" / "run")
    assert "is a file; needed: a folder" in failure(capsys, "run", recipe, "--output", tmp_path / "file")


def test_paths_that_no_system_takes_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("info", "a" * 300), ("report", "a" * 300), ("verify", "a" * 300 + "/b")):
        assert "File name too long" in failure(capsys, *words)


def test_our_own_defects_are_not_called_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("sizes of tensors\ndo not match")

    monkeypatch.setattr(squint.cli, "run_study", broken)
    words = ("run", "digits", "--quiet", "--output", tmp_path / "run")
    line = failure(capsys, *words, code=1)
    assert "internal error, RuntimeError: sizes of tensors do not match (--debug shows where)" in line
    assert main([str(word) for word in (*words, "--debug")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_where_bad_input_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digitz", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("squint: recipe is 'digitz'")


def test_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(squint.cli, "run_study", stopped)
    line = failure(capsys, "run", "digits", "--quiet", "--output", tmp_path / "run", code=130)
    assert "continue with --resume" in line
    monkeypatch.setattr(squint.cli, "attack_weights", stopped)
    assert "--resume" not in failure(capsys, "attack", tmp_path, "--quiet", code=130)
