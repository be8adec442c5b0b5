"""The context through which an attacker looks at quantizers; they read it in the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class GradientView:
    """How an attacker looks at quantizers: another backward pass, the same parameters and forward pass.

    Attributes:
        gradient: name of the surrogate, or "additive" for the additive-noise twin.
        width_factor: how much wider the density of "expected" is than the noise.
        chosen: ids of the quantizers it is about; None: all of them.
    """

    gradient: str
    width_factor: float = 1.0
    chosen: frozenset[int] | None = None


_view: ContextVar[GradientView | None] = ContextVar("squint_view", default=None)


def current_view(quantizer: object) -> GradientView | None:
    """Return the innermost view if it is about this quantizer, or None: it differentiates as it is set."""
    view = _view.get()
    return view if view is None or view.chosen is None or id(quantizer) in view.chosen else None


@contextmanager
def gradient_view(view: GradientView) -> Iterator[None]:
    """Let every quantizer that runs inside the context differentiate as `view` says."""
    token = _view.set(view)
    try:
        yield
    finally:
        _view.reset(token)
