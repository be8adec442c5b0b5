"""Noise inside a graph, from the runtime's uniform numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from squint.export.onnx.graph import Graph

_FIRST_PRIME = 61
_SMALLEST = 2.0**-17


def centred_uniform(graph: Graph, like: str) -> str:
    """Return uniform noise on [-1/2, 1/2], shaped like `like`, independent of all other noise of the graph.

    A runtime without a seed attribute seeds the generator of node k with its seed + k. ONNX Runtime's is a
    linear congruential one, so that the same element of two nodes differs by a constant that never changes:
    their noise would be dependent in every run. Each node therefore takes what is left of its number times a
    prime of its own beside the nearest integer; for primes p and q and any constant c, the rests of p t and
    q t + c have a correlation of at most 1/(p q).
    """
    prime = _prime(graph.noise_nodes)
    graph.noise_nodes += 1
    # No seed attribute: it would repeat the same noise in every session.
    wide = graph.add("RandomUniformLike", like, low=0.0, high=float(prime), dtype=1)
    return graph.add("Sub", wide, graph.add("Round", wide))


def centred(graph: Graph, like: str, kind: str) -> str:
    """Return symmetric noise of variance 1/12, shaped like `like`: "uniform", "logistic" or "gaussian"."""
    n = centred_uniform(graph, like)
    if kind == "uniform":
        return n
    u = graph.add("Add", n, graph.constant(0.5))
    u = graph.add("Clip", u, graph.constant(_SMALLEST), graph.constant(1 - _SMALLEST))
    if kind == "logistic":
        odds = graph.add("Div", u, graph.add("Sub", graph.constant(1.0), u))
        return graph.add("Mul", graph.add("Log", odds), graph.constant(1 / (2 * math.pi)))
    # Box and Muller (1958).
    radius = graph.add("Sqrt", graph.add("Mul", graph.add("Log", u), graph.constant(-2 / 12)))
    angle = graph.add("Mul", centred_uniform(graph, like), graph.constant(2 * math.pi))
    return graph.add("Mul", radius, graph.add("Cos", angle))


def add_noise(graph: Graph, x: str, kind: str, granularity: str, width: float, draws: int, rank: int) -> str:
    """Return x + width * n, with one n for each element, channel, example or draw (draws are in the batch).

    Args:
        graph: where to add it.
        x: (draws * batch, ...), draw-major.
        kind: name of the noise.
        granularity: what shares a number: "element", "channel", "example" or "tensor".
        width: noise width in units of x.
        draws: draws that are folded into the batch.
        rank: number of dimensions of x.
    """
    like = x
    if granularity == "tensor":
        # One row for each draw, and one number for each row.
        rows = graph.add("Reshape", x, graph.constant([draws, -1], "int64"))
        noisy = add_noise(graph, rows, kind, "example", width, draws, 2)
        return graph.add("Reshape", noisy, graph.add("Shape", x))
    if granularity != "element":
        axes = list(range(2 if granularity == "channel" else 1, rank))
        if axes:
            numbers = [graph.constant([value] * len(axes), "int64") for value in (0, 1)]
            like = graph.add("Slice", x, *numbers, graph.constant(axes, "int64"))
    n = centred(graph, like, kind)
    return graph.add("Add", x, graph.add("Mul", n, graph.constant(width)))


def _prime(place: int) -> int:
    return next(prime for index, prime in enumerate(_primes()) if index == place)


def _primes() -> Iterator[int]:
    number = _FIRST_PRIME
    while True:
        if all(number % divisor for divisor in range(2, math.isqrt(number) + 1)):
            yield number
        number += 2
