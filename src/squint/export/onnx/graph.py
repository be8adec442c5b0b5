"""A graph under construction: nodes and initializers with names of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

NARROW_TYPES = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}
"""Type of a signed integer initializer by its bits."""


class Graph:
    """Collects nodes; every method that adds one returns the name of what it computes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.noise_nodes = 0
        self._known: dict[tuple[Any, ...], str] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """Return an initializer with these values, one for all that are equal."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.initializers)}"
            self.initializers.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def narrow_integers(self, values: Array, bits: int, factor: int = 1) -> str:
        """Return int8 values times a whole number, where the values are stored in 2, 4 or 8 bits each."""
        name = f"weight_{len(self.initializers)}"
        if bits == 8:
            values, factor = values * factor, 1
        content, kind = _packed(values, bits), NARROW_TYPES[bits]
        self.initializers.append(helper.make_tensor(name, kind, values.shape, content, raw=True))
        if bits == 8:
            return name
        if factor > 1:
            # Constants all: the runtime computes them once. It multiplies no 8-bit integers.
            wide = self.add("Cast", name, to=TensorProto.INT32)
            name = self.add("Mul", wide, self.constant(factor, "int32"))
        return self.add("Cast", name, to=TensorProto.INT8)

    def quantize(self, x: str, step: float, zero_point: int, levels: int = 256) -> str:
        """Return uint8 codes: round(x / step) + zero_point, kept within 0 .. levels - 1."""
        codes = self.add("QuantizeLinear", x, self.constant(step), self.constant(zero_point, "uint8"))
        if levels == 256:
            return codes
        # On the codes, not before them: the runtime fuses a product with the rounding right behind it.
        return self.add("Clip", codes, self.constant(0, "uint8"), self.constant(levels - 1, "uint8"))

    def dequantize(self, codes: str, step: float, zero_point: int) -> str:
        """Return step * (codes - zero_point) for uint8 codes."""
        return self.add("DequantizeLinear", codes, self.constant(step), self.constant(zero_point, "uint8"))

    def dequantize_channels(self, values: str, scale: Array, dtype: str) -> str:
        """Return scale * values with one scale for each index of the first axis."""
        zeros = self.constant(np.zeros(len(scale)), dtype)
        return self.add("DequantizeLinear", values, self.constant(scale), zeros, axis=0)

    def model(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], opset: int, version: str
    ) -> onnx.ModelProto:
        """Return the whole model, in the oldest file format that holds its operators."""
        graph = helper.make_graph(self.nodes, "squint", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.producer_name, model.producer_version = "squint", version
        model.ir_version = helper.find_min_ir_version_for(opsets)
        return model


def _packed(values: Array, bits: int) -> bytes:
    """Return two's complement values of 2, 4 or 8 bits, the first in the lowest bits of a byte."""
    per_byte = 8 // bits
    codes = values.reshape(-1).astype(np.int8).view(np.uint8) & (2**bits - 1)
    codes = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    # Shifted codes share no bit: their sum is their union.
    joined: Array = (codes << np.arange(0, 8, bits, dtype=np.uint8)).sum(1, dtype=np.uint8)
    return joined.tobytes()
