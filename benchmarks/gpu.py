"""The quantizer on a GPU: its fused kernels, the plain chain and a copy of the values, side by side.

`python -m benchmarks.gpu --output FILE.json` needs CUDA and Triton. Device events time each call as a program
makes it, with Python and the launches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from squint._files import write_json
from squint.quantize import StochasticQuantizer, fused

SHAPE = (512, 64, 32, 32)
REPEATS = 20


def timed(task: Callable[[], object]) -> float:
    """Return the median time of `task` in milliseconds."""
    for _ in range(3):
        task()
    times: list[float] = []
    for _ in range(REPEATS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        task()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return statistics.median(times)


def both_ways(quantizer: StochasticQuantizer, x: Tensor) -> None:
    """Run the quantizer forward and backward."""
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(quantizer(leaf), [leaf, *quantizer.parameters()], x)


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=None)
    output: Path | None = parser.parse_args().output
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device")
    x = torch.randn(SHAPE, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    quantizer = StochasticQuantizer(4, width=0.0, learn_range=True).cuda()
    y = torch.empty_like(x)
    times = {"copy": timed(lambda: y.copy_(x))}
    for name, plain in (("fused", False), ("plain", True)):
        with mock.patch.object(fused, "on_device", return_value=False) if plain else nullcontext():
            with torch.no_grad():
                times[f"{name} forward"] = timed(lambda: quantizer(x))
            times[f"{name} both ways"] = timed(lambda: both_ways(quantizer, x))
    for row, time in times.items():
        print(f"{row:<16} {time:.3f} ms")
    if output is not None:
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        write_json(output, {**device, "shape": SHAPE, "dtype": "bfloat16", "milliseconds": times})


if __name__ == "__main__":
    main()
