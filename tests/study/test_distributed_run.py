"""`squint run` in two processes (gloo) on this machine: killed, taken up again, refused where it must be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from squint import _ranks, cli
from squint import data as D
from squint._checks import InputError
from squint.evaluation.evidence_files import load_evidence
from squint.export import save
from squint.quantize import calibrate
from squint.study.folder import RunFolder
from squint.study.job import with_devices
from squint.study.recipes import checked
from squint.study.systems import build_system
from squint.training import TrainConfig
from squint.training.launching import devices_of, make_fabric
from tests.processes import alone, finish, start
from tests.study.test_run import without_times
from tests.study.tiny import PLAIN


def recipe(folder: Path) -> str:
    """A study of one system, written to a file."""
    plain = PLAIN | {"curve": [], "systems": {"noisy": PLAIN["systems"]["noisy"]}}
    plain["attack"] = {**PLAIN["attack"], "images": 6, "batch_size": 2, "resubmissions": 2}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return str(path)


def wait_for(path: Path, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until a file is there; the processes that write it must live that long."""
    for _ in range(6000):
        if path.exists():
            return
        assert all(process.poll() is None for process in processes), finish(processes, 10)
        time.sleep(0.01)
    raise AssertionError(f"{path} was not written")


def test_a_killed_process_ends_its_job_which_goes_on_to_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [recipe(tmp_path), "--quiet", "--train.epochs", "4", "--output"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    processes = start(2, ["-m", "squint", "run", *words, str(stopped)])
    wait_for(stopped / "checkpoints" / "noisy.safetensors", processes)
    os.kill(processes[1].pid, signal.SIGKILL)
    (code, written), _ = finish(processes, 300)
    assert code == 1
    assert "process 0 of 2 has lost contact" in written
    assert "start all of them again with --resume" in written
    assert "Traceback" not in written
    # Another number of processes would be another training.
    assert cli.main(["run", *words, str(stopped), "--resume"]) == 2
    assert "train.devices (was 2, now 1); resume with the same settings" in capsys.readouterr().err
    # Squint starts the second process itself where it is told to.
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "squint", verb, *words, str(output), "--devices", "2", *more],
            env=alone(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for verb, output, more in (("run", stopped, ["--resume"]), ("train", whole, []))
    ]
    for code, written in finish(runs, 600):
        assert code == 0, written
    weights = [(run / "weights" / "noisy.safetensors").read_bytes() for run in (stopped, whole)]
    assert weights[0] == weights[1]
    assert not (stopped / "checkpoints" / "noisy.safetensors").exists()
    assert (stopped / "report.html").is_file()


LEAVING = """
import sys
import torch
from squint import _ranks
from squint.training import TrainConfig
from squint.training.launching import make_fabric
make_fabric(TrainConfig(batch_size=2, accelerator="cpu"))
# The transport's threads now wait long for the interpreter's lock, which they want once a sum is done.
sys.setswitchinterval(1000)
for _ in range(20):
    _ranks.total(torch.ones(3))
sys.exit(7)
"""


def test_a_job_ends_with_its_own_exit_code_while_the_transport_still_works() -> None:
    jobs = [start(2, ["-c", LEAVING]) for _ in range(3)]
    assert [finish(job, 300) for job in jobs] == [[(7, "")] * 2] * 3


TWO_STEPS = """
import sys
from squint import cli
from squint.evaluation.budgets import PRESETS, tiny
PRESETS["quick"] = tiny(2)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_job_climbs_the_ladder_in_a_run_folder_that_it_alone_holds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = checked(yaml.safe_load(Path(recipe(tmp_path)).read_text()), "")
    with RunFolder(run, config, resume=False, overwrite=False) as folder:
        train = D.load("digits").train
        ens = build_system(config, "noisy", train)
        for member in ens.members:
            calibrate(member, train.float_images()[:64])
        save(ens, folder.weights("noisy"))
        words = ["-c", TWO_STEPS, "attack", str(run), "--attacks", "quick", "--images", "4", "--quiet"]
        results = finish(start(2, words), 300)
        assert [code for code, _ in results] == [2, 1]  # the other is told that the first failed
        said = [written for _, written in results]
        assert "is in use by another squint process" in said[0]
        assert said[1] == ""
    for code, written in finish(start(2, words), 300):
        assert code == 0, written
    assert len(load_evidence(run / "evidence" / "noisy.npz").labels) == 4
    (code, said_by_first), (other, nothing) = finish(start(2, [*words, "--eps", "8/255"]), 300)
    assert (code, other, nothing) == (2, 1, "")
    assert "is evidence at eps 24/255" in said_by_first


@pytest.mark.slow
def test_an_attack_that_starts_its_processes_finds_what_one_finds(tmp_path: Path) -> None:
    """On a machine with one core it cannot: a process has a core of its own."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    words = ["attack", "cifar10-small", "--attacks", "fgsm", "--images", "5", "--batch-size", "2", "--quiet"]
    records = []
    for devices in ("1", "2"):
        output = tmp_path / f"{devices}.json"
        command = [sys.executable, "-m", "squint", *words, "--resubmissions", "4", "--devices", devices]
        subprocess.run([*command, "--output", str(output)], check=True, env=alone(), timeout=300)
        records.append([without_times(record) for record in json.loads(output.read_text())])
    assert records[0] == records[1]


def test_more_devices_than_there_are_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"^train.devices is 4096; allowed: at most \d+ on this machine"):
        devices_of(TrainConfig(devices=4096, accelerator="cpu"))
    for command in ("attack", "detect", "profile"):
        for devices, allowed in (("4096", "at most"), ("0", "a whole number in [1, inf)")):
            assert cli.main([command, "cifar10-small", "--devices", devices]) == 2
            assert f"squint: devices is {devices}; allowed: {allowed}" in capsys.readouterr().err


def test_devices_that_torchrun_did_not_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert _ranks.started() == 2
    assert with_devices(checked(PLAIN, "")).train.devices == 2
    with pytest.raises(InputError, match=r"train.devices is 3, and this job was started with 2 processes"):
        devices_of(TrainConfig(devices=3))
    with pytest.raises(InputError, match=r"train.batch_size is 9; allowed: a multiple of the 2 devices"):
        make_fabric(TrainConfig(batch_size=9, accelerator="cpu"))


def test_only_the_first_process_of_a_job_reports_what_all_meet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, said in (("0", True), ("1", False)):
        for name, value in (("LOCAL_RANK", rank), ("RANK", rank), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        assert cli.main(["run", "no-such-recipe"]) == 2
        assert bool(capsys.readouterr().err) is said
