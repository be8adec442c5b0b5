"""The grid of clean and adversarial images with each member's vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from squint.report.results import Results
from squint.report.run import Examples
from squint.report.style import FigureFiles, Scheme, new_figure, render, shorten

SHOWN = 6
"""How many examples are drawn: the first of the file, whatever became of them."""

_MEMBERS_DRAWN = 7


@dataclass(frozen=True)
class Votes:
    """One example in words: its place in the dataset, true class, and each member's two votes."""

    index: int
    label: str
    error_share: float
    members: tuple[tuple[str, bool, str, bool], ...]
    """(clean vote, right, adversarial vote, right) for each member."""


def votes_of(examples: Examples, class_names: Sequence[str]) -> list[Votes]:
    """Return what each member said about the examples that are drawn."""

    def name(label: int) -> str:
        return class_names[label] if 0 <= label < len(class_names) else f"class {label}"

    shown = []
    for i in range(min(SHOWN, len(examples.index))):
        label = int(examples.label[i])
        pairs = zip(examples.clean_votes[i].tolist(), examples.adversarial_votes[i].tolist(), strict=True)
        members = tuple((name(int(c)), int(c) == label, name(int(a)), int(a) == label) for c, a in pairs)
        shown.append(Votes(int(examples.index[i]), name(label), float(examples.error_share[i]), members))
    return shown


def examples_figure(results: Results, system: str, examples: Examples) -> FigureFiles | None:
    """Return the image grid of one system, or None where its file holds no example."""
    votes = votes_of(examples, results.class_names)
    if not votes:
        return None
    title = results.title(system)
    clean, adversarial = examples.clean[:SHOWN].astype(int), examples.adversarial[:SHOWN].astype(int)
    largest = int(np.abs(adversarial - clean).max())
    gain = max(1, 127 // largest) if largest else 1

    def draw(scheme: Scheme) -> Figure:
        figure = new_figure(0.35 + 1.55 * len(votes))
        grid = figure.subplots(len(votes), 4, width_ratios=[1, 1, 1, 2.1], squeeze=False)
        heads = ("clean", "adversarial", f"difference × {gain}")
        for row, axes in enumerate(grid):
            pictures = (clean[row], adversarial[row], 128 + gain * (adversarial[row] - clean[row]))
            for cell, head, picture in zip(axes, heads, pictures, strict=False):
                _show(cell, picture)
                if row == 0:
                    cell.set_title(head)
            if row == 0:
                axes[3].set_title("class, and votes: clean, attacked", loc="left")
            _write(axes[3], votes[row], scheme)
        return figure

    fooled = sum(not right for vote in votes for *_, right in vote.members)
    return render(
        f"examples_{system}",
        f"Examples: {title}",
        f"The first {len(votes)} {results.images} that the run kept{_attack_on(results, system)}, whatever "
        "became of them. Differences are at "
        f"most {largest}/255, drawn {gain} times as large around grey. ✓ right, ✗ wrong.",
        f"Clean and adversarial images of {title} with the members' votes: {fooled} of "
        f"{sum(len(vote.members) for vote in votes)} votes are wrong under attack. "
        "The votes follow as a table.",
        draw,
    )


def _attack_on(results: Results, system: str) -> str:
    """Return which attack made the examples: the first plain one at the headline's radius."""
    plain = (r for r in results.records if r.system == system and r.radius == results.headline_radius)
    record = next((r for r in plain if "ladder" not in r.attack.lower()), None)
    return "" if record is None else f", under {record.attack_name} at eps {record.eps}"


def _show(axes: Axes, picture: NDArray[Any]) -> None:
    """Draw one (channels, height, width) picture; anything but three channels is shown as its mean grey."""
    picture = np.clip(picture, 0, 255)
    if picture.shape[0] == 3:
        axes.imshow(picture.transpose(1, 2, 0).astype(np.uint8), interpolation="nearest")
    else:
        axes.imshow(picture.mean(0), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("N")  # level with the votes beside it


def _write(axes: Axes, votes: Votes, scheme: Scheme) -> None:
    """Write the votes beside the pictures: a sign and a weight besides the colour."""
    axes.set_axis_off()
    lines = min(len(votes.members), _MEMBERS_DRAWN)
    step = min(0.16, 0.62 / (lines + 1))
    axes.text(0, 0.97, f"{shorten(votes.label, 18)} (image {votes.index})", weight="bold", va="top")
    axes.text(
        0,
        0.81,
        f"errs in {100 * votes.error_share:.1f} % of resubmissions",
        va="top",
        fontsize=8.5,
    )
    y = 0.64
    for number, (clean, clean_right, attacked, attacked_right) in enumerate(votes.members[:lines], 1):
        axes.text(0, y, f"member {number}", va="top", fontsize=8)
        for x, vote, right in ((0.31, clean, clean_right), (0.66, attacked, attacked_right)):
            axes.text(
                x, y, f"{'✓' if right else '✗'} {shorten(vote, 11)}", va="top", fontsize=8,
                color=scheme.text if right else scheme.wrong, weight="normal" if right else "bold",
            )  # fmt: skip
        y -= step
    if len(votes.members) > lines:
        axes.text(0, y, f"and {len(votes.members) - lines} more members", va="top", fontsize=8)
