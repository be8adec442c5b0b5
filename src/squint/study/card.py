"""The model card of a published system."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from squint.evaluation.records import LADDER, attack_title
from squint.study.config import RecipeConfig


def card(results: dict[str, Any], recipe: RecipeConfig, name: str, weights: Path) -> str:
    """Return the model card as Markdown: recipe, seed, every record, its flags and the weights' digest."""
    (facts,) = results["systems"]
    system = recipe.systems[name]
    begun = f", going on from the weights of `{system.start}`" if system.start else ""
    own = (
        f" (of order, augmentation and noise: {recipe.train.seed + recipe.seed})" if recipe.train.seed else ""
    )
    patches = f" with patches of {recipe.patch}" if recipe.patch > 1 else ""
    lines = [
        f"# {facts['title']}",
        "",
        system.description,
        "",
        f"- data: {recipe.dataset}; {recipe.train.epochs} epochs in {facts['training_seconds']:.0f} s{begun}",
        f"- network: {len(system.members)} × {recipe.model} of width {recipe.width}{patches}, "
        f"{facts['parameters']:,} "
        f"parameters; weights of {facts['weight_bits']} bits, input of {facts['input_bits']} bits",
        f"- training tier: {facts['tier']}; seed {results['seed']}{own}",
        f"- hardware of the run, training and attacks: {_machines(results)}",
        f"- weights: `{weights.name}`, {weights.stat().st_size:,} bytes, SHA-256 "
        f"`{hashlib.sha256(weights.read_bytes()).hexdigest()}`",
        "",
        "| attack | eps | n | clean | deployed rule | 95 % | single draw | persistent | trusted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in results["records"]:
        low, high = record["ci95"]
        lines.append(
            f"| {_attack(record)} | {record['eps']} | {record['n']} | {record['clean_accuracy']:.1%} "
            f"| {record['robust_accuracy']:.1%} | {low:.1%} to {high:.1%} "
            f"| {_percent(record['single_draw_accuracy'])} | {_percent(record['persistent_accuracy'])} "
            f"| {'yes' if record['trusted'] else 'no'} |"
        )
    for record in results["records"]:
        lines += _other_rules(record)
    lines += _of_all_images(results.get("extrapolated", []))
    if all(record["attack"] != LADDER for record in results["records"]):
        lines += ["", "The evidence is of a ladder whose record is not here: `squint verify NAME` scores it."]
    flags: dict[str, dict[str, None]] = {}
    for record in results["records"]:
        for flag in record["red_flags"]:
            flags.setdefault(_flag(flag), {})[_attack(record)] = None
    raised = [f"{', '.join(attacks)}: {flag}" for flag, attacks in sorted(flags.items())]
    lines += ["", "Red flags:", "", *(f"- {flag}" for flag in raised or ["none"]), ""]
    lines += [
        "Try to break it: `squint verify NAME`, `squint attack NAME`, `squint break NAME FILE.npz`.",
        "",
    ]
    return "\n".join(lines)


def _other_rules(record: dict[str, Any]) -> list[str]:
    """Return what a ladder's record holds under the rules that the table has no room for; else nothing."""
    details = record.get("details", {})
    if "known_randomness_accuracy" not in details:
        return []
    known, clean = details["known_randomness_accuracy"], details.get("known_randomness_clean_accuracy")
    persistent, unattacked = record.get("persistent", {}), record.get("clean_persistent", {})
    lines = [
        "",
        f"{_attack(record)} at {record['eps']} under the other rules, seed {record['seed']}, "
        f"{record['steps']} steps and {record['eot']} draws per gradient at most:",
        "",
        f"- known randomness: {_percent(known)} (not attacked: {_percent(clean)})",
        f"- the examples rounded to 8 bits: {_percent(details.get('uint8_accuracy'))}",
    ]
    lines += [
        f"- {count} submissions: {_percent(share)} (not attacked: {_percent(unattacked.get(count))})"
        for count, share in persistent.items()
    ]
    lines += [
        f"- {row['draws']} {'draw' if row['draws'] == 1 else 'draws'}: {_percent(row['accuracy'])}, "
        f"{1e3 * row['seconds_per_image']:.2f} ms an image"
        for row in details.get("sweep", [])
    ]
    broken = ", ".join(f"{rung} {count}" for rung, count in details.get("broken_by", {}).items())
    return [*lines, f"- broken by: {broken or 'nothing'}; never broken: {details.get('unbroken', 0)}"]


def _of_all_images(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what ladders on the first images say of all, by a plain attack that has met all of them."""
    lines = ["", "What they would leave of all images, estimated (`squint extrapolate`), not measured:", ""]
    for row in rows:
        found, (low, high) = row["estimate"], row["estimate"]["ci95"]
        lines.append(
            f"- {row['setting']}: {found['share']:.1%} (95 %: {low:.1%} to {high:.1%}) of "
            f"{found['total']:,}, {row['sample']:.1%} of the first {found['images']}; {row['by']} leaves "
            f"{row['by_all']:.1%} and {row['by_sample']:.1%} (correlation {found['correlation']:.2f})"
        )
    return lines if rows else []


def _machines(results: dict[str, Any]) -> str:
    """Return every machine that computed a part, the one that trained as well as those that attacked."""
    each = [
        ", ".join(f"{key} {value}" for key, value in part["hardware"].items())
        for part in results.get("environments") or [results]
    ]
    return "; ".join(dict.fromkeys(each))


def _attack(record: dict[str, Any]) -> str:
    title = attack_title(record["attack"], record["preset"])
    return f"{title} ({record['preset']})" if title == LADDER else title


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _flag(flag: Any) -> str:
    return str(flag.get("message", flag)) if isinstance(flag, dict) else str(flag)
