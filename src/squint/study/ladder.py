"""The ladder on weights that are there: its outcomes and evidence lie where a study would have put them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from squint import _ranks
from squint import data as D
from squint._checks import InputError, format_fraction
from squint._files import write_bytes
from squint.attacks.gradients import AnyModel
from squint.ensemble import Ensemble
from squint.evaluation import RobustnessReport
from squint.evaluation.budgets import Budget
from squint.evaluation.evidence_files import fitting, load_evidence
from squint.evaluation.ladder_report import ladder_report
from squint.study.job import held_by_first
from squint.study.progress import Bar


def climb_weights(
    name: str,
    ens: Ensemble,
    test: D.ImageData,
    radii: list[float],
    budget: Budget,
    *,
    draws: int | None,
    resubmissions: int | None,
    seed: int,
    images: int,
    batch_size: int,
    tier: str,
    sources: Mapping[str, AnyModel],
    folder: Path | None,
    bar: Bar,
    ceilings: Mapping[float, float | None] | None = None,
) -> RobustnessReport:
    """Return the ladder's report on one system; continues where it was stopped, if it has a folder.

    Outcomes are kept in `ladder/NAME-BUDGET` of the folder. The worst images at the first radius go to
    `evidence/NAME.npz`, unless images that break more are there already.

    Args:
        name: of the system.
        ens: what is attacked.
        test: its images, from the first.
        radii: L∞ radii.
        budget: what may be spent.
        draws: draws S per prediction; None: the ensemble's own.
        resubmissions: fresh deployments R of every image; None: the budget's.
        seed: base of every stream.
        images: how many images.
        batch_size: images attacked at once.
        tier: training tier of the system.
        sources: further models to transfer from, by name.
        folder: a run's folder, or another one; None keeps nothing.
        bar: where progress goes.
        ceilings: further radii with the highest credible accuracy.

    Raises:
        squint.InputError: the folder holds another configuration's outcomes, or evidence at another radius,
            or another process that is not of this job works on it, or it cannot be written.
    """
    evidence = None if folder is None else folder / "evidence" / f"{name}.npz"
    if evidence is not None:
        _ranks.first(partial(_check_kept, evidence, test, radii[0], ens.draws if draws is None else draws))
    total = min(images, len(test))
    reports = []
    hold = nullcontext() if folder is None else held_by_first(folder, make=True)
    with hold, TemporaryDirectory() as place:
        for number, radius in enumerate(radii):
            found = Path(place) / f"{name}.npz"
            bar.start(f"{budget.name} on {name}, {format_fraction(radius)}", total)
            report = ladder_report(
                ens,
                test,
                [radius],
                budget,
                system=name,
                draws=ens.draws if draws is None else draws,
                resubmissions=resubmissions,
                seed=seed,
                limit=images,
                batch_size=batch_size,
                tier=tier,
                sources=sources,
                folder=None if folder is None else folder / "ladder" / f"{name}-{budget.name}",
                progress=lambda done, _, note: bar.move(done, note),
                evidence=found,
                ceilings=ceilings,
            )
            reports.append(report)
            if number == 0 and evidence is not None:
                _ranks.first(partial(_keep_stronger, found, evidence))
    return replace(
        reports[0],
        records=tuple(record for report in reports for record in report.records),
        outcomes=tuple(outcome for report in reports for outcome in report.outcomes),
    )


def _check_kept(evidence: Path, test: D.ImageData, radius: float, draws: int) -> None:
    """Refuse to add to evidence of another kind."""
    if not evidence.is_file():
        return
    held = load_evidence(evidence)
    held_at, wanted = format_fraction(held.eps), format_fraction(radius)
    if held_at != wanted:
        raise InputError(
            f"{evidence} is evidence at eps {held_at}; allowed: eps {held_at} first, or another --folder "
            f"for {wanted}"
        )
    if held.draws not in (None, draws):
        raise InputError(
            f"{evidence} is evidence of {held.draws} draws a prediction; allowed: as many, or another "
            f"--folder for {draws}"
        )
    try:
        fitting(test, held.images, held.index, held.labels, held.eps, str(evidence))
    except InputError as error:
        raise InputError(f"{error}: these are other images; name another --folder for them") from None


def _keep_stronger(found: Path, evidence: Path) -> None:
    """Put new evidence in the place of older, unless that is of more images or breaks more of as many."""
    if evidence.is_file():
        old, new = load_evidence(evidence), load_evidence(found)
        if (-len(old.index), float(old.correct.mean())) < (-len(new.index), float(new.correct.mean())):
            return
    write_bytes(evidence, found.read_bytes())
