"""`results.json`, checked and typed. A value that is not allowed is named with its place in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from squint._checks import InputError, check_choice, parse_fraction, shown
from squint.evaluation.records import WHOLE_LADDERS
from squint.report.fields import Fields, Interval
from squint.report.judgement import Judgement, parse_judgement
from squint.report.ladder_details import LadderDetails, parse_details

FORMAT_VERSION = 1
PRESET_NAMES = {
    "seed": "seed protocol",
    "quick": "quick preset",
    "standard": "ladder, standard budget",
    "exhaustive": "ladder, exhaustive budget",
}
"""What people read for each preset, weakest first; only the last two may be called the ladder."""
_ACRONYMS = ("fgsm", "pgd", "apgd", "arc", "mora", "spsa")


@dataclass(frozen=True)
class Flag:
    """A red flag: what was found, in words, and the measurement behind it."""

    kind: str
    message: str
    measured: str


@dataclass(frozen=True)
class Record:
    """One attack on one system at one eps; accuracies are fractions, `eps` keeps its written form."""

    system: str
    attack: str
    preset: str
    norm: str
    eps: str
    radius: float
    steps: int | None
    eot: int | None
    restarts: int | None
    n: int
    draws: int | None
    seed: int | None
    clean_accuracy: float
    clean_ci95: Interval | None
    robust_accuracy: float
    ci95: Interval
    single_draw_accuracy: float | None
    persistent_accuracy: float | None
    persistent: dict[str, float]
    seconds: float | None
    flags: tuple[Flag, ...]
    declared_trusted: bool
    tier: str | None
    ladder: LadderDetails | None = None

    @property
    def trusted(self) -> bool:
        """Whether the figure may be believed: declared so, and without a single red flag."""
        return self.declared_trusted and not self.flags

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the figure is untrusted, in words; empty for a trusted one."""
        if self.flags:
            return tuple(flag.message for flag in self.flags)
        return () if self.declared_trusted else ("an active test of the attack is missing or did not pass",)

    @property
    def preset_name(self) -> str:
        """The preset as people read it: `seed` and `quick` by that name, never as the ladder."""
        return PRESET_NAMES.get(self.preset, f"preset {self.preset}")

    @property
    def attack_name(self) -> str:
        """The attack's name; a worst case from a smaller budget is not allowed the ladder's name."""
        if "ladder" in self.attack.lower() and self.preset not in WHOLE_LADDERS:
            return "worst case"
        return self.attack.upper() if self.attack in _ACRONYMS else self.attack

    @property
    def budget(self) -> str:
        """Steps × EOT × restarts, with a dash for what the attack does not have."""
        return " × ".join("–" if v is None else str(v) for v in (self.steps, self.eot, self.restarts))


@dataclass(frozen=True)
class System:
    """One row of the study: what was trained and how dear it was."""

    name: str
    title: str
    tier: str
    members: int
    parameters: int
    weight_bits: str
    training_seconds: float | None
    description: str
    stored_bits: int | None = None
    bit_operations: int | None = None
    training_passes: int | None = None
    training_compute: float | None = None

    @property
    def compute(self) -> str:
        """Training compute beside the headline's: equal within a twentieth, or the factor."""
        ratio = self.training_compute
        if ratio is None:
            return "–"
        return "equal" if abs(ratio - 1) <= 0.05 else f"× {ratio:.2g}"


@dataclass(frozen=True)
class PlanePoint:
    """One point of an information plane: nats against accuracy at one setting of one threat model.

    `radius` orders a threat's settings: eps, or a corruption's strength; 0 is the clean point.
    """

    system: str
    threat: str
    eps: str
    radius: float
    information: float
    baseline: float
    information_ci95: Interval | None
    accuracy: float
    accuracy_ci95: Interval | None
    n: int
    strength: int | None = None
    estimator: str = "soft_label"
    layer: str = ""
    draws: int | None = None


@dataclass(frozen=True)
class Results:
    """Everything that `results.json` says."""

    recipe: str
    dataset: str
    config_hash: str
    headline_eps: str
    headline_radius: float
    headline_attack: str
    headline_system: str | None
    class_names: tuple[str, ...]
    versions: dict[str, str]
    hardware: dict[str, str]
    systems: tuple[System, ...]
    records: tuple[Record, ...]
    plane: tuple[PlanePoint, ...]
    judgement: Judgement | None = None
    left: tuple[str, ...] = ()
    """Titles of the systems that the run has not done yet."""
    images: str = "images"  # those of the test set need no further word

    def title(self, system: str) -> str:
        """Return the title of a system, or its name where no title is given."""
        return next((s.title for s in self.systems if s.name == system), system)

    def names(self) -> list[str]:
        """Return the systems' names in the order of the file, those only seen in records last."""
        return list(dict.fromkeys([s.name for s in self.systems] + [r.system for r in self.records]))


def parse_results(data: Any, where: str = "results.json") -> Results:
    """Return the checked contents of `results.json`.

    Args:
        data: the file's parsed JSON.
        where: how errors call the file.

    Raises:
        InputError: on a value that is not allowed, with its place in one line.
    """
    top = Fields(data, where)
    version = top.whole("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"{where}: format_version is {version}; allowed: {FORMAT_VERSION}")
    return Results(
        recipe=top.text("recipe", ""),
        dataset=top.text("dataset", ""),
        config_hash=top.text("config_hash", ""),
        headline_eps=top.text("headline_eps"),
        headline_radius=parse_fraction(f"{where}: headline_eps", top.text("headline_eps"), high=math.inf),
        headline_attack=top.text("headline_attack"),
        headline_system=top.text("headline_system") if top.data.get("headline_system") else None,
        class_names=top.texts("class_names"),
        versions={k: str(v) for k, v in top.mapping("versions").items()},
        hardware={k: str(v) for k, v in top.mapping("hardware").items()},
        systems=tuple(_system(f) for f in top.objects("systems")),
        records=tuple(_record(f) for f in top.objects("records")),
        plane=tuple(_point(f) for f in top.objects("plane")),
        judgement=parse_judgement(top),
        left=top.texts("left"),
        images="validation images" if top.data.get("split") == "validation" else "images",
    )


def _system(f: Fields) -> System:
    name = f.text("name")
    tier = f.text("tier")
    check_choice(f"{f.where}: tier", tier, ("A", "B", "C"))
    return System(
        name=name,
        title=f.text("title", name),
        tier=tier,
        members=f.whole("members"),
        parameters=f.whole("parameters"),
        weight_bits=str(f.data.get("weight_bits", "–")),
        training_seconds=f.optional_number("training_seconds"),
        description=f.text("description", ""),
        stored_bits=f.optional_whole("stored_bits"),
        bit_operations=f.optional_whole("bit_operations"),
        training_passes=f.optional_whole("training_passes"),
        training_compute=f.optional_number("training_compute"),
    )


def _record(f: Fields) -> Record:
    eps = f.text("eps")
    flags = f.data.get("red_flags") or []
    if not isinstance(flags, list):
        raise InputError(f"{f.where}: red_flags is {shown(flags)}; allowed: a list")
    trusted = f.data.get("trusted")
    if not isinstance(trusted, bool):
        raise InputError(f"{f.where}: trusted is {shown(trusted)}; allowed: true or false")
    persistent = Fields(f.mapping("persistent"), f"{f.where}: persistent")
    return Record(
        system=f.text("system"),
        attack=f.text("attack"),
        preset=f.text("preset"),
        norm=f.text("norm"),
        eps=eps,
        radius=parse_fraction(f"{f.where}: eps", eps, high=math.inf),
        steps=f.optional_whole("steps"),
        eot=f.optional_whole("eot"),
        restarts=f.optional_whole("restarts"),
        n=f.whole("n"),
        draws=f.optional_whole("draws"),
        seed=f.optional_whole("seed"),
        clean_accuracy=f.number("clean_accuracy", 0, 1),
        clean_ci95=f.optional_interval("clean_ci95"),
        robust_accuracy=f.number("robust_accuracy", 0, 1),
        ci95=f.interval("ci95"),
        single_draw_accuracy=f.optional_number("single_draw_accuracy", 0, 1),
        persistent_accuracy=f.optional_number("persistent_accuracy", 0, 1),
        persistent={q: persistent.number(q, 0, 1) for q, v in persistent.data.items() if v is not None},
        seconds=f.optional_number("seconds"),
        flags=tuple(parse_flag(item, f.where) for item in flags),
        declared_trusted=trusted,
        tier=f.text("tier") if f.data.get("tier") else None,
        ladder=parse_details(f),
    )


def parse_flag(item: Any, where: str) -> Flag:
    """Return a red flag, written as an object or as words alone; errors call its record `where`."""
    if isinstance(item, str):
        return Flag("finding", item, "")
    f = Fields(item, f"{where}: red_flags")
    measured = f.data.get("measured")
    if isinstance(measured, float):
        text = f"{measured:.4g}"
    elif isinstance(measured, dict):
        text = ", ".join(
            f"{k} = {v:.4g}" if isinstance(v, float) else f"{k} = {v}" for k, v in measured.items()
        )
    else:
        text = "" if measured is None else str(measured)
    return Flag(f.text("kind"), f.text("message"), text)


def _point(f: Fields) -> PlanePoint:
    eps, strength = f.text("eps"), f.optional_whole("strength")
    radius = float(strength) if strength else parse_fraction(f"{f.where}: eps", eps, high=math.inf)
    return PlanePoint(
        system=f.text("system"),
        threat=f.text("threat"),
        eps=eps,
        radius=radius,
        information=f.number("information"),
        baseline=f.number("baseline"),
        information_ci95=f.optional_interval("information_ci95", -math.inf, math.inf),
        accuracy=f.number("accuracy", 0, 1),
        accuracy_ci95=f.optional_interval("accuracy_ci95"),
        n=f.whole("n"),
        strength=strength,
        estimator=f.text("estimator", "soft_label"),
        layer=f.text("layer", ""),
        draws=f.optional_whole("draws"),
    )
