"""Every reader of files, each with files that it reads."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

import squint
from squint._files import read_json, write_json
from squint.evaluation.arrays import read_npz, write_npz
from squint.evaluation.evidence_files import Evidence, load_evidence, save_evidence, submitted
from squint.evaluation.plane_profile import PlaneRow, profile_of
from squint.export.onnx import OnnxModel, export_onnx, predict
from squint.report import print_table
from squint.report.detection import read_detection
from squint.report.run import read_run
from squint.report.table import headline_of, rows_of
from squint.study.folder import RunFolder, check_folder, read_config, read_results
from squint.study.hypothesis_verdict import print_judgement
from squint.study.pairs import outcomes_of
from squint.study.published import kept_images
from squint.study.recipes import read_recipe, to_yaml
from squint.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.fuzz.data_readers import Reader, cifar_files, fashion, pictures, tiles
from tests.fuzz.kept_readers import attacks, climbed, detected, kept_points, ladder, plane
from tests.fuzz.samples import SYSTEM, ensemble, images, judgement, record, results
from tests.report.detection_data import detection
from tests.report.detection_data import record as detection_record
from tests.study.tiny import tiny


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


def recipe(folder: Path) -> list[Reader]:
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(tiny()))
    return [Reader("recipe", folder, (path,), lambda: read_recipe(path))]


def run_folder(folder: Path) -> list[Reader]:
    run, seen = folder / "run", tiny()
    with RunFolder(run, seen, resume=False, overwrite=False) as held:
        held.write_results(results() | {"hypothesis": judgement()})
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
        row = PlaneRow(
            SYSTEM,
            "linf-pgd",
            "24/255",
            None,
            0.1,
            0.0,
            (0.0, 0.2),
            0.5,
            (0.1, 0.9),
            3,
            "x",
            "predictions",
            2,
        )
        write_json(run / "plane.json", profile_of([row]).to_json() | {"left_out": []})
        write_json(
            held.outcome(SYSTEM), {"system": results()["systems"][0], "records": [record()], "plane": []}
        )
    screen = Console(file=io.StringIO(), width=80)

    def report() -> None:
        content = read_run(run)
        headline_of(content.results, rows_of(content.results))
        print_table(read_results(run), screen)
        print_judgement(read_results(run).get("hypothesis"), screen)
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

    shown = ("detection.json", "results.json", "plane.json", "log.jsonl", f"examples/{SYSTEM}.npz")
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


def publication(folder: Path) -> list[Reader]:
    names, order = np.array(list("abcd")), np.arange(6)
    bytes_ = images(6).mul(255).byte().numpy()
    arrays = {"images": bytes_, "labels": order % 4, "class_names": names, "name": np.asarray("toy")}
    write_npz(folder / "images.npz", arrays)
    return [Reader("published", folder, (folder / "images.npz",), lambda: kept_images(folder))]


def plain_files(folder: Path) -> list[Reader]:
    write_json(folder / "plain.json", results())
    write_npz(folder / "plain.npz", {"a": np.arange(3), "b": np.array(["x", "yz"])})
    return [
        Reader("json", folder, (folder / "plain.json",), lambda: read_json(folder / "plain.json")),
        Reader("npz", folder, (folder / "plain.npz",), lambda: read_npz(folder / "plain.npz")),
    ]


MAKERS = (
    weights, checkpoint, detector, evidence, attacks, plane, ladder, climbed, detected, recipe, run_folder,
    exported, cifar_files, fashion, pictures, tiles, kept_points, publication, plain_files,
)  # fmt: skip


def all_readers(folder: Path) -> list[Reader]:
    """Write whole files for every reader below `folder` and return the readers."""
    found = []
    for make in MAKERS:
        place = folder / make.__name__
        place.mkdir(parents=True)
        found += make(place)
    return found
