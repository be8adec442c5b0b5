"""Attention whose projections are modules, so that they can be quantized."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def has_explicit_form(module: nn.Module) -> bool:
    """Return whether `ExplicitMultiheadAttention` can stand for the module: torch's own attention, plain."""
    return type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn


class ExplicitMultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` with its four projections as linear layers that can be quantized.

    torch's own module never calls its `out_proj` and has a fast path that skips every submodule; this one
    computes the same function (same arguments, same outputs to float rounding) through modules. Needs
    `has_explicit_form(attention)`.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = attention.embed_dim
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        self.training = attention.training
        # torch.nn.TransformerEncoderLayer reads these to decide on its fast path; both answers are "no".
        self._qkv_same_embed_dim = False
        self.in_proj_weight = None
        self.in_proj_bias = None
        packed = attention.in_proj_weight
        weights = (
            (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            if packed is None
            else packed.chunk(3)
        )
        bias = attention.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        learns = (weights[0] if packed is None else packed).requires_grad
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, b, learns, bias is not None and bias.requires_grad)
            for weight, b in zip(weights, biases, strict=True)
        )
        out = attention.out_proj
        self.out_proj = _linear(
            out.weight, out.bias, out.weight.requires_grad, out.bias is not None and out.bias.requires_grad
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return attention output and weights, with the arguments of `torch.nn.MultiheadAttention`."""
        batched = query.ndim == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q = self._split(self.q_proj(query))
        k = self._split(self.k_proj(key))
        v = self._split(self.v_proj(value))
        scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        if attn_mask is not None:
            mask = _additive(attn_mask, scores.dtype)
            scores = scores + (mask.view(-1, self.num_heads, *mask.shape[1:]) if mask.ndim == 3 else mask)
        if key_padding_mask is not None:
            scores = scores + _additive(key_padding_mask, scores.dtype)[:, None, None, :]
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        out = cast(Tensor, self.out_proj((weights @ v).transpose(1, 2).flatten(2)))
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if not batched:
            return out.squeeze(0), None if shown is None else shown.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), shown

    def _split(self, x: Tensor) -> Tensor:
        """Return (batch, tokens, embed) as (batch, heads, tokens, embed per head)."""
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)


def _linear(weight: Tensor, bias: Tensor | None, weight_learns: bool, bias_learns: bool) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight.detach().clone(), weight_learns)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias_learns)
    return layer


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an additive mask: minus infinity where a boolean mask is true."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
