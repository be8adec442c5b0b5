"""A run's system as a small folder that others can load, verify and try to break without its data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from squint import data as D
from squint._checks import InputError, check_choice, format_fraction
from squint._files import read_bytes, write_bytes, write_json, write_text
from squint.evaluation.arrays import read_npz, write_npz
from squint.evaluation.evidence_files import Evidence, load_evidence
from squint.evaluation.records import LADDER
from squint.export import load, save
from squint.report.fields import Fields
from squint.report.results import parse_results
from squint.study.card import card
from squint.study.config import RecipeConfig
from squint.study.folder import read_config, read_results
from squint.study.identity import check_records
from squint.study.keeping import CHANGED, check_data, check_weights, digests_of
from squint.study.known import EVIDENCE, outcomes_of, records_of
from squint.study.recipes import to_yaml
from squint.study.whole_set import Extrapolated, extrapolated, ladder_title, unlike

IMAGES = "images.npz"
_MOST_BYTES = 2**28


def kept_images(folder: Path) -> D.ImageData | None:
    """Return the test images that a published folder keeps, in the order of the test set, or None.

    Raises:
        squint.InputError: the file is there and is not whole, or not what `publish` writes.
    """
    path = folder / IMAGES
    if not path.is_file():
        return None
    arrays = read_npz(path, max_bytes=_MOST_BYTES)
    try:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
        names = tuple(str(name) for name in arrays["class_names"])
        return D.ImageData(images, labels, names, str(arrays["name"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} holds no kept images ({error}); publish the run again") from None


def publish(
    run: Path,
    system: str | None,
    output: Path,
    further: Sequence[Path] = (),
    *,
    data_dir: str | None = None,
) -> Path:
    """Write one system of a finished run as a folder of its own, and return that folder.

    It holds the recipe with this system alone, packed weights, the system's records, evidence with the test
    images it came from, examples with each image's outcomes, and a card.

    Args:
        run: folder of a finished run whose ladder was climbed.
        system: name of the system; None: the headline's.
        output: folder to write.
        further: files of `squint attack --output` on these weights, whose records of the system join the
            run's own; where they name other weights they are refused, older ones name none.
        data_dir: folder with the data set's files; None: the run's, or the cache.

    Raises:
        squint.InputError: no such system, other weights than those of its records, no evidence, a file
            without a record of the system, or an output that is there already or cannot be written; nothing
            is left of it then.
    """
    recipe, results = read_config(run), read_results(run)
    name = system or recipe.headline_system
    check_choice("system", name, recipe.systems)
    if recipe.attack.split != "test":
        raise InputError(f"{run} attacks {recipe.attack.split} images; allowed: a run on test images")
    evidence = run / "evidence" / f"{name}.npz"
    if not evidence.is_file():
        raise InputError(f"{evidence} is missing: run the study with --attack.ladder quick or standard first")
    if output.exists() and not output.is_dir():
        raise InputError(f"output is {output}, which is a file; allowed: a new folder")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"output is {output}, which is not empty; allowed: a new folder")
    check_weights(run, name)
    ens = load(run / "weights" / f"{name}.safetensors")
    alone = replace(recipe, systems={name: recipe.systems[name]}, headline=name, data_dir=None)
    own = _of_system(results, name, str(run / "results.json"))
    more = {file: records_of(file, name) for file in further}
    for file, records in more.items():
        check_records(file, records, run / "weights" / f"{name}.safetensors")
    own["records"] += [record for records in more.values() for record in records]
    own["extrapolated"] = [row.to_json() for row in _of_all_images(run, name, more)]
    with _whole_or_absent(output) as built:
        weights = built / "weights" / f"{name}.safetensors"
        save(ens, weights, packed=True)
        write_text(built / "config.yaml", to_yaml(alone))
        write_json(built / "results.json", own)
        for part in (Path("evidence"), Path("examples")):
            kept = run / part / f"{name}.npz"
            if kept.is_file():
                write_bytes(built / part / kept.name, read_bytes(kept, _MOST_BYTES))
        _keep_images(run, recipe, data_dir, len(load_evidence(evidence).labels), built)
        write_text(built / "card.md", card(own, alone, name, weights))
    return output


@contextmanager
def _whole_or_absent(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` to write in, and put it in its place at the end; on errors remove it."""
    place = output.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as beside:
            # Temporary folders are for the owner alone; this one inside is for everybody.
            built = Path(beside) / place.name
            built.mkdir()
            yield built
            built.replace(place)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from None


def _of_system(results: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return what a run's results say of one system, once that was checked."""
    known = parse_results(results, where)
    if name not in [system.name for system in known.systems]:
        raise InputError(f"{where} says nothing of {name} yet: squint run --resume goes on with it")
    top = Fields(results, where)
    top.whole("seed")
    for part in (*top.objects("environments"), top):
        part.mapping("hardware")
    kept = {**results, "headline_system": name, "left": []}
    kept["systems"] = [system for system in results["systems"] if system["name"] == name]
    for rows in ("records", "plane"):
        kept[rows] = [row for row in results.get(rows, []) if row["system"] == name]
    return kept


def _of_all_images(run: Path, name: str, more: Mapping[Path, Sequence[dict[str, Any]]]) -> list[Extrapolated]:
    """Return what the run's ladders, and those of records beside their evidence, say of all images."""
    known = outcomes_of(f"{run}:{name}")
    beside: list[tuple[str, Path]] = []
    for file, records in more.items():
        path = file.parent / "evidence" / f"{name}.npz"
        evidence = load_evidence(path) if path.is_file() else None
        beside += [
            (f"{ladder_title(record['preset'], record['eps'])}, in 8-bit images", path)
            for record in records
            if evidence is not None and _is_of(evidence, record)
        ]
    every = [record for records in more.values() for record in records if not unlike(known, record)]
    rows = extrapolated(known, every, beside)
    return [row for row in rows if not row.setting.startswith(EVIDENCE)]


def _is_of(evidence: Evidence, record: dict[str, Any]) -> bool:
    """Return whether evidence is of this record: a folder that was climbed twice keeps one of two."""
    share = record.get("details", {}).get("uint8_accuracy")
    return (
        record["attack"] == LADDER
        and record["eps"] == format_fraction(evidence.eps)
        and record["n"] == len(evidence.labels)
        and isinstance(share, float)
        and math.isclose(share, evidence.correct.mean(), abs_tol=1e-6)
    )


def _keep_images(run: Path, recipe: RecipeConfig, data_dir: str | None, count: int, output: Path) -> None:
    place = data_dir or recipe.data_dir
    splits = D.load(recipe.dataset, place, validation=recipe.validation, seed=recipe.seed)
    check_data(run, digests_of(splits), CHANGED)
    test = splits.test
    write_npz(
        output / IMAGES,
        {
            "images": test.images[:count].numpy(),
            "labels": test.labels[:count].numpy(),
            "class_names": np.array(test.class_names),
            "name": np.asarray(test.name),
        },
    )
