"""Muon (Jordan et al. 2024) for the weights of convolutions and linear layers, AdamW for everything else.

torch.optim.Muon takes matrices alone, which the weights of convolutions are not, and iterates on the whole
matrix in bfloat16. Here the iteration runs on the Gram matrix in float32, at no more cost on a CPU, but for
those that multiply in bfloat16 (AMX, AVX-512), where it takes 1.6 to 1.7 times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MATRICES = "matrices"
"""Key of the parameter groups whose weights are orthogonalized."""
MOMENTUM = "momentum_buffer"
"""Name of their momentum in the optimizer's state, which is SGD's too."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_SMALLEST = 1e-7
_NOTHING = 1e-12
"""Entries up to this size, where the matrix's norm is 1, count as zero. The momentum of a channel that no
longer learns fades away; products of what is left are denormal numbers, several times as slow."""
_RMS = 0.2
"""Root mean square of AdamW's updates: with it both use one learning rate (Liu et al. 2025, eq. 4)."""


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of `matrix` and singular values near 1, of the same shape.

    Five steps of the quintic Newton-Schulz iteration X <- (aI + bG + cG^2) X, G = X X^T (Jordan et al. 2024).
    The factors are polynomials of the first G and commute: their product is found on the smaller side alone,
    and applied once. Singular values of less than a thousandth of the matrix's norm stay below 1.

    Args:
        matrix: float (rows, columns); zeros give zeros.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(torch.promote_types(matrix.dtype, torch.float32))
    x = torch.nn.functional.hardshrink(x / x.norm().clamp(min=_SMALLEST), _NOTHING)
    a, b, c = _COEFFICIENTS
    gram = x @ x.T
    product: Tensor | None = None
    for step in range(_STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step < _STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    result: Tensor = x.T if tall else x
    return result.to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """Orthogonalized momentum for the groups that have `MATRICES`, AdamW for the others.

    A convolution's weight counts as a matrix (output channels, everything else). The learning rate is that of
    AdamW, of which updates have about the root mean square, and weight decay is decoupled as there.

    Args:
        groups: parameter groups, each with its own weight decay.
        lr: learning rate.
        momentum: of the matrices; Nesterov's.
        fused: of AdamW.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, *, momentum: float = 0.95, fused: bool = False
    ) -> None:
        super().__init__(groups, lr=lr, fused=fused)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, and return the closure's loss where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if not group.get(MATRICES):
                continue
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group["lr"], group["weight_decay"])
                    held.append((weight, weight.grad))
                    weight.grad = None  # which AdamW's step passes over
        super().step()
        for weight, gradient in held:
            weight.grad = gradient
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[weight]
        if not state:
            # AdamW's way of being restored looks for a count in every state.
            state |= {"step": torch.zeros(()), MOMENTUM: torch.zeros_like(weight)}
        state["step"] += 1
        momentum = state[MOMENTUM]
        momentum.lerp_(gradient, 1 - self.momentum)
        update = gradient.lerp(momentum, self.momentum)
        matrix = update.flatten(1)
        length = lr * _RMS * max(matrix.shape) ** 0.5
        weight.mul_(1 - lr * weight_decay)
        weight.add_(orthogonalized(matrix).view(update.shape), alpha=-length)
