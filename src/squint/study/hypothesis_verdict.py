"""What the attacks on collections and their parts say about the hypothesis, in figures and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from squint.evaluation.equivalence import MARGIN, Equivalence
from squint.report.fields import Fields
from squint.study.hypothesis import Collection, Plan
from squint.study.pairs import Runs, accuracies_of, verdict_of

ROLES = {
    "best member": "its best member alone",
    "best member, equal compute": "its best kind of member alone, trained as long as the collection",
    "equally quantized": "the best collection of equally quantized members",
    "averaging": "its kind of member alone, trained as long as the collection",
}
"""What a collection is compared with, in words."""


def judge(plan: Plan, runs: Runs, attack: str, eps: str, margin: float = MARGIN) -> dict[str, Any]:
    """Return every collection beside its members and beside equally quantized ones, and what follows.

    The best member and the best equally quantized collection are chosen by the accuracies that are compared,
    which favours them: a collection that beats them does so in spite of it.

    Args:
        plan: of the recipe that was run.
        runs: its runs, one per training seed.
        attack: name of the attack whose figures are compared.
        eps: its radius, as records write it.
        margin: largest difference that counts as none, a fraction.

    Returns:
        Plain data: "attack", "eps", "margin", "comparisons" and "conclusions".

    Raises:
        squint.InputError: a record is missing.
    """

    def best(systems: Sequence[str]) -> str:
        means = {name: sum(accuracies_of(runs, name, attack, eps)) for name in systems}
        return max(means, key=lambda name: means[name])

    def title_of(system: str) -> str:
        return plan.recipe.systems[system].title or system

    comparisons, conclusions = [], []
    for each in plan.collections:
        rivals = {"best member": best(each.members), "best member, equal compute": best(each.longer)}
        if each.different and each.equals:
            rivals["equally quantized"] = best(each.equals)
        if not each.different:
            rivals = {"averaging": best(each.longer)}
        found = {
            role: verdict_of(runs, each.name, rival, attack, eps, margin) for role, rival in rivals.items()
        }
        for role, rival in rivals.items():
            names = {"collection": each.name, "title": title_of(each.name), "against": rival}
            words = {"against_title": title_of(rival), "role": role, "with": ROLES[role]}
            place = {"attack": attack, "eps": eps}
            comparisons.append({**names, **words, **place, **found[role].to_json()})
        lines = [
            f"against {ROLES[role]} ({title_of(rival)}) it has {_in_words(found[role])}"
            for role, rival in rivals.items()
        ]
        sentence = f"{title_of(each.name)}: {'; '.join(lines)}. {_verdict(each, found)}"
        conclusions.append({"collection": each.name, "words": sentence})
    return {
        "attack": attack,
        "eps": eps,
        "margin": margin,
        "comparisons": comparisons,
        "conclusions": conclusions,
    }


def _in_words(verdict: Equivalence) -> str:
    low, high = verdict.ci95
    points = f"{100 * verdict.mean:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    return f"{points}: {_size(verdict)}"


def _size(verdict: Equivalence) -> str:
    """Return what a verdict says: by how much there is a difference, or that it is open."""
    points = f"{100 * verdict.margin:g} points"
    if verdict.verdict == "helps":
        return f"better by more than {points}"
    if verdict.verdict == "hurts":
        return f"worse by more than {points}"
    if verdict.verdict == "equivalent":
        return f"the same within {points}"
    if verdict.above_zero is None:
        return "undecided"
    return f"{'better' if verdict.above_zero else 'worse'}, undecided whether by {points}"


def _verdict(each: Collection, found: dict[str, Equivalence]) -> str:
    """Return the answers to the two questions: does it beat its best member, and is difference why?"""
    if not each.different:
        averaging = found["averaging"]
        if averaging.above_zero:
            return "Averaging networks that are quantized alike helps by itself."
        if averaging.above_zero is None and averaging.verdict == "undecided":
            return "Undecided whether averaging helps."
        return "Averaging networks that are quantized alike does not help."
    alone, fair = found["best member"], found["best member, equal compute"]
    equal = found.get("equally quantized")
    if alone.above_zero and not fair.above_zero:
        open_ = fair.above_zero is None and fair.verdict == "undecided"
        rest = "undecided whether also" if open_ else "but not"
        return f"The collection beats its best member, {rest} one trained as long as all of them."
    if not (alone.above_zero and fair.above_zero):
        settled = any(v.above_zero is False or v.verdict == "equivalent" for v in (alone, fair))
        return (
            "The collection does not beat its best member."
            if settled
            else "Undecided whether the collection beats its best member."
        )
    words = "The collection beats its best member"
    if equal is None:
        return f"{words}; no equally quantized collection was run to tell difference from averaging."
    if equal.above_zero:
        return f"{words}, and difference adds to what averaging gives."
    if equal.above_zero is False:
        return f"{words}, but equally quantized members do better still: averaging, not difference, is why."
    if equal.verdict == "equivalent":
        return f"{words}, as equally quantized members do: averaging, not difference, is why."
    return f"{words}; undecided whether difference or averaging is why."


def print_judgement(judgement: dict[str, Any] | None, console: Console) -> None:
    """Print every comparison of `judge` as a table, and its conclusions; None prints nothing.

    Args:
        judgement: what `judge` returned, or what stands in its place in somebody's file.
        console: where it is printed.

    Raises:
        squint.InputError: a field is missing or not of its kind.
    """
    if not judgement:
        return
    found = Fields(judgement, "hypothesis")
    heading = f"The hypothesis, under {found.text('attack')} at eps {found.text('eps')}"
    table = Table(title=Text(heading), title_justify="left")
    for column in ("Collection", "Compared with"):
        table.add_column(column, overflow="fold")
    table.add_column("Points [95 %]", justify="right", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for entry in found.objects("comparisons"):
        low, high = entry.interval("ci95", -2, 2)
        table.add_row(
            Text(entry.text("title")),
            Text(f"{entry.text('with')}: {entry.text('against_title')}"),
            f"{100 * entry.number('mean', -1, 1):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
            Text(entry.text("verdict")),
        )
    console.print(table)
    for conclusion in found.objects("conclusions"):
        console.print(Text(conclusion.text("words")))
