"""Noise of a graph: independent between its nodes, of the right distribution, never seeded."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from squint.export.onnx.graph import Graph, _packed  # noqa: E402
from squint.export.onnx.noise import add_noise  # noqa: E402
from squint.export.onnx.runtime import open_session  # noqa: E402

Array = np.ndarray[Any, Any]


def _session(kinds: list[tuple[str, str]], draws: int, shape: list[int | str]) -> Any:
    """Return a session whose outputs are noise of width 1 of each (kind, granularity) on zeros."""
    graph = Graph()
    outputs = [add_noise(graph, "x", kind, grain, 1.0, draws, len(shape)) for kind, grain in kinds]
    info = onnx.helper.make_tensor_value_info
    model = graph.model(
        [info("x", onnx.TensorProto.FLOAT, shape)],
        [info(name, onnx.TensorProto.FLOAT, shape) for name in outputs],
        21,
        "0",
    )
    onnx.checker.check_model(model, full_check=True)
    assert all(a.name != "seed" for node in graph.nodes for a in node.attribute)
    return open_session(model.SerializeToString(), threads=1)


def _run(session: Any, *shape: int) -> list[Array]:
    outputs: list[Array] = session.run(None, {"x": np.zeros(shape, dtype=np.float32)})
    return outputs


def test_nodes_are_independent_element_by_element() -> None:
    # The runtime's own generators of neighbouring nodes differ by a constant: correlations of up to 1.
    runs = [_run(_session([("uniform", "element")] * 3, 1, ["n"]), 40) for _ in range(400)]
    noise: Array = np.array(runs)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        products = 12 * (noise[:, a] * noise[:, b]).mean(0)
        # Mean over 400 sessions of products of deviation 1/12: 400^-1/2, at 40 elements below 4.5 deviations.
        assert float(np.abs(products).max()) < 4.5 / 20
        assert float(np.sqrt(np.mean(products**2))) < 1.5 / 20


@pytest.mark.parametrize("kind", ["uniform", "logistic", "gaussian"])
def test_moments(kind: str) -> None:
    noise = _run(_session([(kind, "element")], 1, ["n"]), 200_000)[0].astype(np.float64)
    kurtosis = {"uniform": 1.8, "logistic": 4.2, "gaussian": 3.0}[kind]
    n = len(noise)
    assert abs(noise.mean()) < 5 * (1 / 12 / n) ** 0.5
    assert abs(noise.var() * 12 - 1) < 5 * ((kurtosis - 1) / n) ** 0.5
    assert abs((noise**4).mean() * 144 / kurtosis - 1) < 0.1


@pytest.mark.parametrize(
    ("grain", "distinct"), [("element", 6 * 3 * 4), ("channel", 6 * 3), ("example", 6), ("tensor", 2)]
)
def test_what_shares_a_number(grain: str, distinct: int) -> None:
    noise = _run(_session([("uniform", grain)], 2, ["b", 3, 2, 2]), 6, 3, 2, 2)[0]
    assert len(np.unique(noise)) == distinct
    if grain != "element":
        assert np.ptp(noise[0, 0]) == 0
    if grain == "tensor":
        assert np.ptp(noise[:3]) == 0
        assert np.ptp(noise[3:]) == 0


def test_sessions_and_calls_draw_fresh_noise() -> None:
    first, second = (_session([("uniform", "element")], 1, ["n"]) for _ in range(2))
    assert len({_run(s, 8)[0].tobytes() for s in (first, first, second, second)}) == 4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_narrow_integers_are_read_back_by_the_library(bits: int) -> None:
    generator = np.random.default_rng(secrets.randbits(32))
    top = 2 ** (bits - 1) - 1
    values = generator.integers(-top, top + 1, (3, 3, 1, 3)).astype(np.int8)
    graph = Graph()
    graph.narrow_integers(values, bits)
    stored = onnx.numpy_helper.to_array(graph.initializers[0])
    assert np.array_equal(stored.astype(np.int8), values)
    assert len(_packed(values, bits)) == -(-values.size * bits // 8)
