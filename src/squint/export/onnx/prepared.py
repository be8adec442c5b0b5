"""What is decided before any work: is the ensemble one that a graph can hold, and in which operator set?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from squint._checks import InputError, InputTypeError, check_choice, check_number
from squint.baselines import VotingEnsemble
from squint.ensemble import Ensemble, varies
from squint.export.onnx.fold import largest_value, stored_bits
from squint.export.onnx.plan import MemberPlan, plan_ensemble, quantizer_pair
from squint.export.onnx.runtime import need, open_session
from squint.quantize import set_rounding
from squint.quantize.quantizer import ROUNDINGS


@dataclass(frozen=True)
class Prepared:
    """An ensemble that can be exported.

    Attributes:
        twin: a copy on the CPU, in evaluation mode and in the rounding mode of the graph.
        plans: its members, step by step.
        rounding: "nearest" or "sample"; "nearest" where nothing is drawn, whatever was asked for.
        draws: draws of each member; 1 for those without noise.
        opset: version of the operator set.
        own_rounding: the rounding of the ensemble that was handed over, in the same sense.
    """

    twin: Ensemble
    plans: tuple[MemberPlan, ...]
    rounding: str
    draws: tuple[int, ...]
    opset: int
    own_rounding: str

    @property
    def can_disagree(self) -> bool:
        """Whether one prediction has several members or draws, which a detector's score compares."""
        return sum(self.draws) > 1


def prepare(ens: Ensemble, rounding: str = "nearest", opset: int | None = None) -> Prepared:
    """Return what an export starts from; cheap, and without any data.

    Raises:
        squint.InputError: the extra is missing, a layer is not supported, a range was never set, or the opset
            is too old for the weights, or too new for the runtime.
    """
    need("onnx")
    need("onnxruntime")
    check_choice("rounding", rounding, ROUNDINGS)
    if not isinstance(ens, Ensemble):
        raise InputTypeError(f"export_onnx needs a squint.Ensemble, got {type(ens).__name__}")
    if isinstance(ens, VotingEnsemble):
        raise InputError("the ensemble deploys its members' vote; allowed: those of the mean probability")
    twin = copy.deepcopy(ens).cpu().float().eval()
    own = _rounding(twin)
    set_rounding(twin, rounding)
    plans = plan_ensemble(twin)
    rounding = _rounding(twin)
    draws = tuple(twin.draws if varies(member) else 1 for member in twin.members)
    return Prepared(
        twin, tuple(plans), rounding, draws, _opset(plans, opset, noisy=rounding == "sample"), own
    )


def _rounding(ens: Ensemble) -> str:
    return "sample" if any(varies(member) for member in ens.members) else "nearest"


def _opset(plans: Sequence[MemberPlan], opset: int | None, *, noisy: bool) -> int:
    """Return the opset to use, or raise where the one asked for does not do."""
    import onnx

    from squint.export.onnx.build import NOISY_OPSET, OPSETS

    least = 4 if noisy else 2
    bits, name = 32, ""
    for product in (p for plan in plans for p in plan.products()):
        weight = quantizer_pair(product.layer)[1]
        if weight is not None and stored_bits(largest_value(weight), least) < bits:
            bits, name = stored_bits(largest_value(weight), least), product.name
    if opset is None:
        opset = OPSETS[bits]
    check_number("opset", opset, 1, onnx.defs.onnx_opset_version(), whole=True)
    if opset < OPSETS[bits]:
        what = f" for {bits}-bit weights ({name})" if name else ""
        raise InputError(f"opset is {opset}, too old{what}; use opset {OPSETS[bits]} or later")
    if noisy and opset > NOISY_OPSET:
        raise InputError(
            f"opset is {opset}; ONNX Runtime draws noise up to opset {NOISY_OPSET}: use that, "
            "or rounding='nearest'"
        )
    if name:
        _check_runtime(opset, bits, OPSETS[bits])
    return int(opset)


def _check_runtime(opset: int, bits: int, oldest: int) -> None:
    """Refuse an opset whose integers the installed runtime does not compute, on a graph of one weight."""
    import onnx
    import onnxruntime

    from squint.export.onnx.graph import Graph

    graph = Graph()
    x = graph.dequantize(graph.quantize("x", 1.0, 0), 1.0, 0)
    weight = graph.dequantize_channels(
        graph.narrow_integers(np.ones(1), bits), np.ones(1, np.float32), "int8"
    )
    graph.nodes.append(onnx.helper.make_node("Mul", [x, weight], ["y"]))
    ends = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, [1]) for end in "xy"]
    try:
        open_session(graph.model(ends[:1], ends[1:], opset, "").SerializeToString(), threads=1)
    except InputError:
        fix = f"use opset {oldest}" if opset > oldest else "update it: pip install -U onnxruntime"
        raise InputError(
            f"opset is {opset}, which the installed ONNX Runtime {onnxruntime.__version__} cannot run with "
            f"{bits}-bit weights; {fix}"
        ) from None
