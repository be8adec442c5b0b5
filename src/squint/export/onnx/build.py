"""The whole graph: members, their mean probability, the detector's score, and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from squint._checks import InputError
from squint.export.onnx.emit import Emission
from squint.export.onnx.graph import Graph
from squint.export.onnx.plan import MemberPlan

OPSETS = {2: 25, 4: 21, 8: 18, 32: 18}
"""First opset that holds initializers of so many bits, and everything else that is used."""
NOISY_OPSET = 21
"""Last opset whose random operators ONNX Runtime implements: noisy graphs keep 2-bit weights in 4 bits."""


@dataclass(frozen=True)
class Built:
    """A graph and what its emission found; the names are those of `Emission`."""

    model: onnx.ModelProto
    draws: tuple[int, ...]
    num_classes: int
    integer: tuple[str, ...]
    floating: tuple[str, ...]
    narrowed: tuple[str, ...]
    wide: tuple[str, ...]

    def with_card(self, card: Mapping[str, Any]) -> bytes:
        """Return the file's bytes with a model card: text entries, each value JSON."""
        del self.model.metadata_props[:]
        try:
            entries = {key: json.dumps(value, allow_nan=False) for key, value in card.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"the model card holds what JSON cannot: {error}") from None
        helper.set_model_props(self.model, entries)
        content: bytes = self.model.SerializeToString()
        return content


def build_model(
    plans: Sequence[MemberPlan],
    draws: Sequence[int],
    *,
    opset: int,
    saturating: bool,
    ranges: Mapping[str, tuple[float, float]],
    image_shape: Sequence[int | str],
    with_score: bool,
) -> Built:
    """Return the checked graph of an ensemble.

    Args:
        plans: its members.
        draws: draws of each member; 1 for those without noise.
        opset: version of the operator set.
        saturating: keep clear of CPUs that add 8-bit products in 16 bits.
        ranges: smallest and largest output by a product's name, where known.
        image_shape: sizes behind the batch; a name stands for one that is free.
        with_score: add the detector's score as a second output.
    """
    graph = Graph()
    emission = Emission(graph, saturating, 2 if opset >= OPSETS[2] else 4, ranges)
    num_classes = len(list(plans[0].products())[-1].layer.weight)
    members = [
        _log_probabilities(graph, emission.member(plan, "images", count), count, num_classes)
        for plan, count in zip(plans, draws, strict=True)
    ]
    means = [_log_mean(graph, member, count) for member, count in zip(members, draws, strict=True)]
    stacked = graph.add("Concat", *means, axis=0) if len(means) > 1 else means[0]
    mean = graph.add("Squeeze", _log_mean(graph, stacked, len(means)), graph.constant([0], "int64"))
    outputs: list[tuple[str, str, list[str | int | None]]] = [
        ("log_probability", mean, ["batch", num_classes])
    ]
    if with_score:
        outputs.append(("score", _mutual_information(graph, mean, members), ["batch"]))
    for name, value, _ in outputs:
        graph.nodes.append(helper.make_node("Identity", [value], [name], name=name))
    shape_in: list[str | int | None] = ["batch", *image_shape]
    model = graph.model(
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, _, shape in outputs],
        opset,
        metadata.version("squint-nn"),
    )
    onnx.checker.check_model(model, full_check=True)
    return Built(
        model,
        tuple(draws),
        num_classes,
        tuple(emission.integer),
        tuple(emission.floating),
        tuple(emission.narrowed),
        tuple(emission.wide),
    )


def versions() -> dict[str, str]:
    """Return the versions that the model card names."""
    return {
        "squint_version": metadata.version("squint-nn"),
        "torch_version": str(torch.__version__),
        "onnx_version": str(onnx.__version__),
    }


def _log_probabilities(graph: Graph, logits: str, draws: int, num_classes: int) -> str:
    """Return log probabilities (draws, batch, classes) of draw-major logits (draws * batch, classes)."""
    by_draw = graph.add("Reshape", logits, graph.constant([draws, -1, num_classes], "int64"))
    return graph.add("LogSoftmax", by_draw, axis=2)


def _log_mean(graph: Graph, logs: str, count: int) -> str:
    """Return the logarithm of the mean of exp(logs) over the first dimension, which stays with size 1."""
    if count == 1:
        return logs
    # Written out: the runtime's ReduceLogSumExp need not subtract the maximum first.
    axes = graph.constant([0], "int64")
    largest = graph.add("ReduceMax", logs, axes, keepdims=1)
    mean = graph.add("ReduceMean", graph.add("Exp", graph.add("Sub", logs, largest)), axes, keepdims=1)
    return graph.add("Add", graph.add("Log", mean), largest)


def _mutual_information(graph: Graph, mean: str, members: Sequence[str]) -> str:
    """Return H(mean probability) less the mean entropy over members and draws, (batch,), in nats."""
    within = []
    for member in members:
        axes = graph.constant([0], "int64")
        within.append(graph.add("ReduceMean", _negative_entropy(graph, member), axes, keepdims=0))
    total = within[0] if len(within) == 1 else graph.add("Mean", *within)
    return graph.add("Sub", total, _negative_entropy(graph, mean))


def _negative_entropy(graph: Graph, logs: str) -> str:
    axes = graph.constant([-1], "int64")
    return graph.add("ReduceSum", graph.add("Mul", graph.add("Exp", logs), logs), axes, keepdims=0)
