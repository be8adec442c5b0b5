"""Every reader of files, each with files that it reads."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import squint
from squint._files import read_json, write_json
from squint.ensemble import Ensemble
from squint.evaluation.arrays import read_npz, write_npz
from squint.evaluation.batch_outcomes import BatchOutcomes
from squint.evaluation.detection.kept import KeptPoints
from squint.evaluation.evidence_files import Evidence, load_evidence, save_evidence, submitted
from squint.evaluation.kept_attacks import KeptAttacks
from squint.evaluation.plane_kept import KeptRows
from squint.evaluation.plane_profile import PlaneRow, profile_of
from squint.evaluation.scoring import Scores
from squint.export.onnx import OnnxModel, export_onnx, predict
from squint.models import small_cnn
from squint.report import print_table
from squint.report.detection import read_detection
from squint.report.run import read_run
from squint.report.table import headline_of, rows_of
from squint.study.folder import RunFolder, check_folder, read_config, read_results
from squint.study.pairs import outcomes_of
from squint.study.recipes import read_recipe, to_yaml
from squint.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.fuzz.data_readers import Reader, cifar_files, fashion, pictures, tiles
from tests.report.detection_data import detection
from tests.report.detection_data import record as detection_record
from tests.study.tiny import tiny

SYSTEM = "noisy"


def images(count: int, channels: int = 1, side: int = 8) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def ensemble() -> Ensemble:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [squint.quantize(small_cnn(4, 1, 2), 3, 2, bits) for bits in (1, 2)]
    ens = Ensemble(nets, draws=2)
    squint.calibrate(ens, images(8))
    return ens.eval()


def weights(folder: Path) -> list[Reader]:
    found = []
    for packed in (False, True):
        path = folder / f"weights-{packed}.safetensors"
        squint.save(ensemble(), path, packed=packed)
        found.append(Reader(path.stem, folder, (path,), partial(squint.load, path)))
    return found


def checkpoint(folder: Path) -> list[Reader]:
    ens, path = ensemble(), folder / "checkpoint.safetensors"
    optimizer = torch.optim.AdamW(ens.parameters())
    sum(p.sum() for p in ens.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    average = {name: value.detach().clone() for name, value in ens.state_dict().items()}
    progress = Progress(3, {"ce": 1.0}, 2.0, [{"epoch": 1, "terms": {"ce": 1.0}}])
    save_checkpoint(path, ens, optimizer, average, progress, {"epochs": 2, "images": 5, "data": "digest"})

    def read() -> None:
        load_checkpoint(path, ens, optimizer, average, {"epochs": 2, "images": 5, "data": "digest"})

    return [Reader("checkpoint", folder, (path,), read)]


def detector(folder: Path) -> list[Reader]:
    ens, found = ensemble(), []
    clean = (images(80), torch.arange(80) % 4)
    for score in ("predictive_information", "gaussian_density", "combination"):
        path = folder / f"detector-{score}.safetensors"
        squint.Detector.fit(ens, clean, 0.05, score=score).save(path)

        def read(path: Path = path) -> None:
            squint.Detector.load(path, ens)

        found.append(Reader(path.stem, folder, (path,), read))
    return found


def evidence(folder: Path) -> list[Reader]:
    path = folder / "evidence.npz"
    points = images(6).mul(255).byte()
    order = torch.arange(6)
    save_evidence(path, Evidence(order, order % 4, points, order - 1, order / 6, 8, 0.1, SYSTEM))

    def read() -> None:
        submitted(read_npz(path), path)
        load_evidence(path)

    return [Reader("evidence", folder, (path,), read)]


def attacks(folder: Path) -> list[Reader]:
    place, order = folder / "attacks", torch.arange(3)
    scores = Scores(order, 4, order / 4, 2, True, torch.zeros_like(order))
    kept = KeptAttacks(place, lambda: {"system": SYSTEM}, 1)
    kept.part(1, 0, lambda: (images(3), scores))

    def read() -> None:
        again = KeptAttacks(place, lambda: {"system": SYSTEM}, 1)
        (_, found), seconds = again.part(1, 0, lambda: (images(3), scores))
        assert found.accuracy <= 1
        assert 0 <= seconds < float("inf")

    return [Reader("attacks", place, tuple(sorted(place.iterdir())), read)]


def plane(folder: Path) -> list[Reader]:
    place = folder / "plane"
    row = PlaneRow(
        SYSTEM, "clean", "0", None, 0.1, 0.0, (0.0, 0.2), 0.5, (0.1, 0.9), 3, "x", "predictions", 2
    )
    KeptRows(place, lambda: {"system": SYSTEM}).rows(0, lambda: [row])

    def read() -> None:
        profile_of(KeptRows(place, lambda: {"system": SYSTEM}).rows(0, lambda: [row]))

    return [Reader("plane", place, tuple(sorted(place.iterdir())), read)]


def ladder(folder: Path) -> list[Reader]:
    place = folder / "ladder"
    configuration = {"system": SYSTEM, "seed": 0, "budget": {"name": "quick"}}
    store = BatchOutcomes(place, configuration)
    arrays = {"points": np.zeros((3, 1, 8, 8), np.float32), "broken_by": np.array([0, 1, -1])}
    for batch in range(2):
        store.save(batch, arrays, {"rungs": [], "seconds": 1.0})

    def read() -> None:
        again = BatchOutcomes(place, configuration)
        for batch in range(3):
            again.load(batch)

    return [Reader("ladder", place, tuple(sorted(place.iterdir())), read)]


def recipe(folder: Path) -> list[Reader]:
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(tiny()))
    return [Reader("recipe", folder, (path,), lambda: read_recipe(path))]


def record(**changes: Any) -> dict[str, Any]:
    return {
        "system": SYSTEM, "attack": "pgd", "preset": "seed", "norm": "linf", "eps": "24/255", "steps": 20,
        "eot": 1, "restarts": 1, "n": 20, "draws": 2, "seed": 0, "clean_accuracy": 0.9,
        "clean_ci95": [0.8, 1.0],
        "robust_accuracy": 0.5, "ci95": [0.3, 0.7], "single_draw_accuracy": 0.4, "persistent_accuracy": None,
        "persistent": {"1": 0.5, "10": None}, "clean_persistent": {"1": 0.9}, "tier": "A", "seconds": 1.0,
        "red_flags": [{"kind": "k", "message": "m", "measured": {"a": 1.5}}], "trusted": False, "details": {},
    } | changes  # fmt: skip


def results() -> dict[str, Any]:
    point = {
        "system": SYSTEM, "threat": "pgd", "eps": "24/255", "information": 0.1, "baseline": 0.01,
        "information_ci95": [0.0, 0.2], "accuracy": 0.5, "accuracy_ci95": [0.3, 0.7], "n": 20,
    }  # fmt: skip
    system = {
        "name": SYSTEM, "title": "Noisy", "description": "d", "tier": "A", "members": 2, "parameters": 10,
        "weight_bits": "2/3", "training_seconds": 1.0,
    }  # fmt: skip
    return {
        "format_version": 1, "versions": {"torch": "2"}, "hardware": {"device": "cpu"}, "config_hash": "0",
        "recipe": "tiny", "description": "", "dataset": "digits", "class_names": list("abcd"), "seed": 0,
        "headline_system": SYSTEM, "headline_eps": "24/255", "headline_attack": "pgd", "seconds": 1.0,
        "systems": [system], "records": [record(), record(eps="8/255")],
        "plane": [point, point | {"eps": "0"}],
    }  # fmt: skip


def run_folder(folder: Path) -> list[Reader]:
    run, seen = folder / "run", tiny()
    with RunFolder(run, seen, resume=False, overwrite=False) as held:
        held.write_results(results())
        for epoch in (1, 2):
            held.log(
                SYSTEM, {"event": "epoch", "epoch": epoch, "terms": {"ce": 1.0}, "validation_accuracy": 0.5}
            )
        bytes_, order = images(6).mul(255).byte().numpy(), np.arange(6)
        held.write_examples(
            SYSTEM,
            {
                "index": order, "label": order % 4, "clean": bytes_, "adversarial": bytes_,
                "clean_votes": np.zeros((6, 2), np.int64), "adversarial_votes": np.ones((6, 2), np.int64),
                "error_share": order / 6, "clean_correct": order / 6,
                "settings": np.array(["pgd 24/255"]), "correct": np.ones((1, 6)),
            },
        )  # fmt: skip
        squint.save(ensemble(), held.weights(SYSTEM))
        held.finish_training(SYSTEM, 1.0)
        write_json(run / "detection.json", detection(detection_record(SYSTEM, "24/255")))
        write_json(
            held.outcome(SYSTEM), {"system": results()["systems"][0], "records": [record()], "plane": []}
        )
    screen = Console(file=io.StringIO(), width=80)

    def report() -> None:
        content = read_run(run)
        headline_of(content.results, rows_of(content.results))
        print_table(read_results(run), screen)
        read_detection(run)
        outcomes_of(run, SYSTEM, "pgd", "24/255")

    def resume() -> None:
        check_folder(run, seen, resume=True, overwrite=False)
        read_config(run)
        with RunFolder(run, seen, resume=True, overwrite=False) as again:
            again.training_seconds(SYSTEM)
            again.finished_attack(SYSTEM)

    # Opened once: looking for versions and hardware takes longer than reading what is done.
    opened = RunFolder(run, seen, resume=True, overwrite=False)
    opened.close()

    def finished() -> None:
        opened.training_seconds(SYSTEM)
        opened.finished_attack(SYSTEM)

    shown = ("detection.json", "results.json", "log.jsonl", f"examples/{SYSTEM}.npz")
    own = ("config.yaml", "run.json", "log.jsonl")
    done = (
        f"systems/{SYSTEM}.json", f"systems/{SYSTEM}.training.json", f"weights/{SYSTEM}.safetensors",
    )  # fmt: skip
    return [
        Reader("report", run, tuple(run / name for name in shown), report),
        Reader("resume", run, tuple(run / name for name in own), resume),
        Reader("finished", run, tuple(run / name for name in done), finished),
    ]


def exported(folder: Path) -> list[Reader]:
    path = folder / "model.onnx"
    export_onnx(ensemble(), path, "nearest", class_names=list("abcd"))
    one = images(1)

    def read() -> None:
        predict(OnnxModel(path, threads=1), one)

    return [Reader("onnx", folder, (path,), read)]


def kept_points(folder: Path) -> list[Reader]:
    kept, names = KeptPoints(folder, reuse=True), (SYSTEM, "pgd", "24/255")
    kept.write(names, "settings", images(2), 1.0)
    (path,) = folder.iterdir()
    return [Reader("kept points", folder, (path,), partial(kept.read, names, "settings"))]


def plain_files(folder: Path) -> list[Reader]:
    write_json(folder / "plain.json", results())
    write_npz(folder / "plain.npz", {"a": np.arange(3), "b": np.array(["x", "yz"])})
    return [
        Reader("json", folder, (folder / "plain.json",), lambda: read_json(folder / "plain.json")),
        Reader("npz", folder, (folder / "plain.npz",), lambda: read_npz(folder / "plain.npz")),
    ]


MAKERS = (
    weights, checkpoint, detector, evidence, attacks, plane, ladder, recipe, run_folder, exported,
    cifar_files, fashion, pictures, tiles, kept_points, plain_files,
)  # fmt: skip


def all_readers(folder: Path) -> list[Reader]:
    """Write whole files for every reader below `folder` and return the readers."""
    found = []
    for make in MAKERS:
        place = folder / make.__name__
        place.mkdir(parents=True)
        found += make(place)
    return found
