"""Milliseconds per image and file size of a ResNet-20: torch, ONNX Runtime in floats and in integers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import medians
from squint import Ensemble, calibrate, models, quantize, set_rounding
from squint._files import write_tensors
from squint.export.onnx import OnnxModel, export_onnx
from squint.export.packing import pack

BATCHES = (1, 64)
DRAWS = 4
System = tuple[Callable[[Tensor], Tensor], int]
REPEATS = {1: (31, 5), 64: (11, 2)}
"""By batch: repeats of what takes a millisecond or so, and of what is much slower."""


def _base(x: Tensor) -> nn.Module:
    """Return a network whose batch statistics are those of `x`; its weights do not matter for time."""
    net = models.resnet20()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net(x)
    return net.eval()


def _quantized(base: nn.Module, bits: int, x: Tensor, activation_width: float | None = None) -> Ensemble:
    net = quantize(base, bits, bits, bits, activation_width=activation_width)
    ens = Ensemble([net], draws=DRAWS).eval()
    calibrate(ens, x)
    return ens


def _packed_size(ens: Ensemble, folder: Path) -> int:
    path = folder / "packed.safetensors"
    write_tensors(path, *pack(ens))
    return path.stat().st_size


def _systems(folder: Path, x: Tensor) -> dict[str, System]:
    """Return each system as a callable, and the size of its file in bytes."""
    base = _base(x)
    full = Ensemble([base], draws=1)
    exported = export_onnx(full, folder / "full.onnx")
    four = _quantized(base, 4, x)
    nearest = _quantized(base, 4, x)
    set_rounding(nearest, "nearest")
    systems: dict[str, System] = {
        "torch, full precision": (full, 4 * sum(p.numel() for p in full.parameters())),
        "torch, 4-bit simulation, nearest": (nearest, _packed_size(four, folder)),
        f"torch, 4-bit simulation, {DRAWS} draws": (four, _packed_size(four, folder)),
        "ONNX Runtime, full precision": (OnnxModel(exported.path, threads=1), exported.bytes),
    }
    for bits in (8, 4, 2):
        for rounding, width, label in (
            ("nearest", None, "nearest"),
            ("sample", None, f"{DRAWS} draws"),
            ("sample", 0.0, f"{DRAWS} draws at the input"),
        ):
            path = folder / f"{bits}-{rounding}-{width}.onnx"
            # Random weights say nothing about parity: the gate is the tests' matter.
            report = export_onnx(_quantized(base, bits, x, width), path, rounding, images=x[:8], force=True)
            systems[f"ONNX Runtime, {bits}-bit integers, {label}"] = (
                OnnxModel(path, threads=1),
                report.bytes,
            )
    return systems


def main() -> None:
    """Print the table: milliseconds per image, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            x = torch.rand(max(BATCHES), 3, 32, 32, generator=torch.Generator().manual_seed(0))
            systems = _systems(Path(folder), x)
            times = {batch: _per_image(systems, x[:batch]) for batch in BATCHES}
    finally:
        torch.set_num_threads(threads)
    reference = "ONNX Runtime, full precision"
    print("\nResNet-20, ms per image, one thread  (goal: integers 1.3 times as fast, 4-bit file at most 1/6)")
    heads = "".join(f"{f'batch {batch}':>10}{'speed':>7}" for batch in BATCHES)
    print(f"  {'':<48}{heads}{'kB':>9}{'size':>7}")
    for name, (_, size) in systems.items():
        cells = "".join(f"{times[b][name]:10.3f}{times[b][reference] / times[b][name]:7.2f}" for b in BATCHES)
        print(f"  {name:<48}{cells}{size / 1000:9.0f}{size / systems[reference][1]:7.3f}")


def _per_image(systems: dict[str, System], x: Tensor) -> dict[str, float]:
    times: dict[str, float] = {}
    for fast, repeats in zip((True, False), REPEATS[len(x)], strict=True):
        tasks = {
            name: partial(run, x)
            for name, (run, _) in systems.items()
            if fast == (name.startswith("ONNX") and "draws" not in name)
        }
        times |= {name: ms / len(x) for name, ms in medians(tasks, repeats=repeats, warmup=1).items()}
    return times


if __name__ == "__main__":
    main()
