"""The tables of `docs/detection.md` from their records: `python -m benchmarks.detection FILE ...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from squint._files import read_json
from squint.evaluation.detection import SCORE_NAMES

HEAD = (
    "| score | AUROC attacked (95 % interval) | not attacked | accuracy with rejection attacked "
    "| not attacked | false alarms | ten submissions: wrong, clean flagged once |",
    "|---|---|---|---|---|---|---|",
)


def table(files: Sequence[Path]) -> list[str]:
    """Return the lines of a table with every record of the files, the scores in the order of the package."""
    records = [record for file in files for record in read_json(file)["records"]]
    return [*HEAD, *map(_row, sorted(records, key=lambda record: SCORE_NAMES.index(record["score"])))]


def _row(record: dict[str, Any]) -> str:
    found = [each["separation"] for each in record["attacks"] if each["separation"] is not None]
    low, high = min(found, key=lambda each: each["auroc"])["auroc_ci95"]
    least, most = record["ci95"]
    ten = record["persistent"]["10"]
    cells = (
        f"`{record['score']}`",
        f"{record['adaptive_auroc']:.3f} ({low:.2f} to {high:.2f})",
        f"{record['non_adaptive_auroc']:.3f}",
        f"{100 * record['accuracy_with_rejection']:.1f} % ({100 * least:.0f} to {100 * most:.0f})",
        f"{100 * record['non_adaptive_accuracy_with_rejection']:.1f} %",
        f"{100 * record['clean_false_alarms']:.1f} %",
        # Fewer than forty resubmissions do not tell what ten would do.
        "–" if ten is None else f"{100 * ten['success']:.0f} %, {100 * ten['clean_flagged_once']:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print one table of all records that were named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="detection.json")
    print("\n".join(table(parser.parse_args().files)))


if __name__ == "__main__":
    main()
