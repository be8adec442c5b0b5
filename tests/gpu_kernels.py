"""Where the tests run the GPU's kernels: on a GPU, or else on the CPU under Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
if DEVICE.type == "cpu":
    # Read when the kernels are first imported, which a CPU alone never does.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton comes with torch's builds for GPUs")
