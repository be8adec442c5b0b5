"""Explicit attention computes what `torch.nn.MultiheadAttention` computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from squint.quantize import quantize
from squint.quantize.attention import ExplicitMultiheadAttention, has_explicit_form


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(attention: nn.MultiheadAttention, *inputs: Tensor, **options: object) -> None:
    explicit = ExplicitMultiheadAttention(attention)
    assert explicit.training == attention.training
    out, weights = attention(*inputs, **options)
    found, shown = explicit(*inputs, **options)
    torch.testing.assert_close(found, out, atol=1e-5, rtol=1e-5)
    assert (shown is None) == (weights is None)
    if shown is not None:
        torch.testing.assert_close(shown, weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention(training: bool, batch_first: bool, bias: bool, need_weights: bool) -> None:
    attention = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).train(training)
    if bias:
        with torch.no_grad():
            attention.in_proj_bias.copy_(tokens(36, seed=1))
            attention.out_proj.bias.copy_(tokens(12, seed=2))
    x = tokens(4, 5, 12)
    compare(attention, x, x, x, need_weights=need_weights, average_attn_weights=False)


def test_cross_attention_with_other_widths_for_key_and_value() -> None:
    attention = nn.MultiheadAttention(12, 2, kdim=7, vdim=9, batch_first=True)
    compare(attention, tokens(3, 4, 12), tokens(3, 6, 7), tokens(3, 6, 9))


@pytest.mark.parametrize("floating", [True, False])
@pytest.mark.parametrize("per_head", [True, False])
def test_masks(floating: bool, per_head: bool) -> None:
    attention = nn.MultiheadAttention(12, 2, batch_first=True)
    x = tokens(3, 5, 12)
    forbidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    if per_head:
        forbidden = forbidden.repeat(6, 1, 1)
        forbidden[::2, 1:, 0] = True
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    options = {"attn_mask": forbidden, "key_padding_mask": padding}
    if floating:
        options = {name: torch.zeros(m.shape).masked_fill(m, -torch.inf) for name, m in options.items()}
    compare(attention, x, x, x, **options)


def test_one_sequence_without_a_batch() -> None:
    attention = nn.MultiheadAttention(12, 2)
    x = tokens(5, 12)
    compare(attention, x, x, x, key_padding_mask=torch.tensor([False, False, True, False, True]))


def test_a_causal_hint_alone_masks_the_future() -> None:
    explicit = ExplicitMultiheadAttention(nn.MultiheadAttention(12, 2, batch_first=True))
    x = tokens(2, 5, 12)
    _, weights = explicit(x, x, x, is_causal=True)
    assert torch.equal(weights, weights.tril())


def test_parameters_and_their_freezing_are_kept() -> None:
    attention = nn.MultiheadAttention(12, 2)
    attention.in_proj_weight.requires_grad_(False)
    explicit = ExplicitMultiheadAttention(attention)
    packed = torch.cat([explicit.q_proj.weight, explicit.k_proj.weight, explicit.v_proj.weight])
    assert torch.equal(packed, attention.in_proj_weight)
    assert not explicit.k_proj.weight.requires_grad
    assert explicit.out_proj.weight.requires_grad
    assert explicit.q_proj.bias.requires_grad
    assert sum(p.numel() for p in explicit.parameters()) == sum(p.numel() for p in attention.parameters())


def test_attention_with_extra_tokens_stays_in_full_precision_and_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 2, add_bias_kv=True)
            self.head = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.attention(x, x, x)[0])
            return out

    net = Net()
    assert not has_explicit_form(net.attention)
    with pytest.warns(UserWarning, match=r"attention \(MultiheadAttention\)") as caught:
        quantized = quantize(net, input_bits=None, first_last_bits=None)
    assert len(caught) == 1
    assert "out_proj" not in str(caught[0].message)
    torch.testing.assert_close(quantized(tokens(4, 1, 12)), net(tokens(4, 1, 12)))
