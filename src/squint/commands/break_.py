"""`squint break`: anyone's adversarial images, scored as squint's own are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from squint._checks import InputError, check_number, format_fraction, parse_fraction
from squint._files import check_output
from squint.commands.targets import Target, attacked_images, check_system, load_target
from squint.evaluation.evidence import Challenge, break_with
from squint.evaluation.evidence_files import load_evidence


@dataclass(frozen=True)
class BreakOptions:
    """Score your own adversarial images against a model, and hold them against a record.

    FILE is an npz without pickle: images (n, channels, height, width), uint8 or float in [0, 1]; index (n,),
    their places among the test images; labels (n,).

    Examples:
      squint break runs/digits/weights/stochastic.safetensors mine.npz --eps 24/255
      squint break runs/digits mine.npz --system stochastic
      squint break model.safetensors mine.npz --eps 5/255 --record runs/digits/evidence/stochastic.npz
    """

    model: tyro.conf.Positional[Path]
    """Weights (*.safetensors), a run folder with --system, or the name of a shipped model."""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """Your images (*.npz)."""
    eps: str | None = None
    """L-infinity radius that they keep, a fraction such as 5/255; default: that of the run's headline."""
    system: str | None = None
    """Name of the system, where the model is a run folder."""
    record: Path | None = None
    """Evidence that yours is held against; default: the run's own, where it has some of this radius."""
    dataset: str | None = None
    """Data set whose test images were changed; default: the run's, or digits."""
    data_dir: str | None = None
    """Folder with the data set's files; default: the run's, or the cache."""
    seed: int = 0
    """Of the score stream."""
    draws: int | None = None
    """Draws S per prediction; default: the file's own."""
    resubmissions: int = 64
    """Fresh deployments of every image that are scored."""
    output: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Challenged:
    """A challenge to one system."""

    system: str
    eps: str
    result: Challenge
    record: str | None
    """System that the record names, where there is one."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"system": self.system, "eps": self.eps, "record": self.record} | asdict(self.result)

    def __str__(self) -> str:
        """Return one line for people."""
        r = self.result
        line = (
            f"{self.system} at eps {self.eps}: {r.accuracy:.1%} [{r.ci95[0]:.1%}, {r.ci95[1]:.1%}] on your "
            f"images, n={r.n}, seed={r.seed}"
        )
        if r.record_accuracy is None or r.difference_ci95 is None:
            return f"{line}; no record to hold them against (--record)"
        low, high = r.difference_ci95
        verdict = "the record is BROKEN" if r.beats_record else "the record stands"
        whose = "" if self.record in (None, "", self.system) else f", of {self.record}"
        return (
            f"{line}; {r.record_accuracy:.1%} on the record's{whose}, difference [{100 * low:+.1f}, "
            f"{100 * high:+.1f}] points: {verdict}"
        )


def break_model(options: BreakOptions) -> Challenged:
    """Return how someone's images do against a model.

    Raises:
        squint.InputError: no such model, or a file that is no challenge to it; the line says where.
    """
    check_output(options.output)
    check_number("seed", options.seed, 0, whole=True)
    if options.eps is not None:
        parse_fraction("eps", options.eps)
    target = load_target(options.model, options.system)
    if options.eps is None and target.recipe is None:
        raise InputError(f"{options.model} lies in no run that names a radius: give --eps, such as 5/255")
    radius = parse_fraction("eps", options.eps or target.known.eps)
    record = options.record or _own_record(target, radius)
    of = None if record is None else load_evidence(record)
    if record is not None and of is not None:
        check_system(target, of, record)
    challenge = break_with(
        target.placed(),
        attacked_images(target, options.dataset, options.data_dir),
        options.file,
        eps=radius,
        record=of,
        seed=options.seed,
        draws=options.draws,
        resubmissions=options.resubmissions,
        batch_size=target.known.attack.batch_size,
    )
    return Challenged(target.name, format_fraction(radius), challenge, None if of is None else of.system)


def _own_record(target: Target, radius: float) -> Path | None:
    """Return the evidence that lies beside a run's weights, if it is of this radius."""
    path = target.file.parent.parent / "evidence" / f"{target.name}.npz"
    if target.recipe is None or not path.is_file():
        return None
    return path if abs(load_evidence(path).eps - radius) < 1e-9 else None
