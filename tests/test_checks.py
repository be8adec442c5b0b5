"""Input contracts: what passes, what is refused, and that the message is one helpful line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from squint import _checks as C


def nested() -> Any:
    value: Any = []
    for _ in range(5000):
        value = [value]
    return value


def test_messages_are_short_and_steer_no_terminal() -> None:
    assert C.shown("x" * 1000) == "'" + "x" * 119 + " ... " + "x" * 39 + "'"
    assert C.describe(ValueError("y" * 1000 + "\nz")) == "y" * 300 + " ..."
    assert C.printable("a\x1b[2Jb\x00\u009bé\n") == "a\ufffd[2Jb\ufffd\ufffdé\n"


def test_errors_are_the_builtin_kinds() -> None:
    assert issubclass(C.InputError, ValueError)
    assert issubclass(C.InputTypeError, TypeError)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: C.check_choice("norm", "linff", ["linf", "l2"]), C.InputError, "did you mean 'linf'"),
        (lambda: C.check_choice("norm", "zzz", ["linf", "l2"]), C.InputError, "allowed: linf, l2"),
        (lambda: C.check_number("eps", -1, 0, 1), C.InputError, "eps is -1"),
        (lambda: C.check_number("n", 10**5000, 0), C.InputError, "n is a number of thousands of digits;"),
        (lambda: C.check_number("n", 10**400, 0), C.InputError, "00 ... 00"),
        (lambda: C.check_choice("norm", cast(Any, nested()), ["linf"]), C.InputError, "a deeply nested list"),
        (lambda: C.parse_fraction("eps", "1e999999999"), C.InputError, "eps is inf"),
        (lambda: C.parse_fraction("eps", "1/" + "9" * 5000), C.InputError, "eps is '1/9999"),
        (lambda: C.check_number("eps", 0, 0, 1, open_low=True), C.InputError, "in (0, 1]"),
        (lambda: C.check_number("steps", 1.5, 1, whole=True), C.InputError, "a whole number in [1, inf)"),
        (lambda: C.check_number("eps", math.nan), C.InputError, "(-inf, inf)"),
        (lambda: C.check_number("eps", True, 0, 1), C.InputError, "eps is True"),
        (lambda: C.check_bits("bits", 9), C.InputError, "1..8"),
        (lambda: C.check_images(cast(Any, [0.5])), C.InputTypeError, "got list"),
        (lambda: C.check_images(torch.zeros(2, 3, dtype=torch.uint8)), C.InputError, "torch.uint8"),
        (lambda: C.check_images(torch.zeros(3)), C.InputError, "shape (3,)"),
        (lambda: C.check_images(torch.zeros(0, 3)), C.InputError, "shape (0, 3)"),
        (lambda: C.check_images(torch.full((2, 3), math.nan)), C.InputError, "NaN"),
        (lambda: C.check_images(torch.full((2, 3), 255.0)), C.InputError, "[255, 255]"),
        (lambda: C.check_labels(torch.zeros(3), 3), C.InputError, "float32"),
        (lambda: C.check_labels(torch.zeros(2, dtype=torch.long), 3), C.InputError, "(3,)"),
        (lambda: C.check_labels(torch.tensor([0, 9]), 2, 5), C.InputError, "0..4"),
        (lambda: C.check_labels(torch.tensor([0, -1]), 2), C.InputError, "0 and above"),
        (lambda: C.check_labels(cast(Any, [1, 2]), 2), C.InputTypeError, "got list"),
        (lambda: C.check_logits(torch.zeros(2, 1), 2), C.InputError, "(2, 1)"),
        (lambda: C.check_logits(cast(Any, None), 2), C.InputTypeError, "NoneType"),
        (lambda: C.need_members(torch.nn.Identity(), "mora"), C.InputTypeError, "mora needs a model"),
        (lambda: C.parse_fraction("eps", "5/0"), C.InputError, "'5/0'"),
        (lambda: C.parse_fraction("eps", "five"), C.InputError, "5/255"),
        (lambda: C.parse_fraction("eps", "3/2"), C.InputError, "eps is 1.5"),
    ],
)
def test_what_is_refused_says_so_in_one_line(
    call: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert C.describe(caught.value) == str(caught.value)


def test_what_is_allowed_passes() -> None:
    C.check_choice("norm", "l2", ["linf", "l2"])
    assert C.check_number("eps", 0.5, 0, 1) == 0.5
    assert C.check_number("steps", 3, 1, whole=True) == 3
    C.check_bits("bits", None)
    for bits in range(1, 9):
        C.check_bits("bits", bits)
    C.check_images(torch.tensor([[-0.5e-4, 1 + 0.5e-4]]))
    C.check_labels(torch.tensor([0, 4]), 2, 5)
    C.check_logits(torch.zeros(2, 2), 2)


def test_members_are_known_by_their_method() -> None:
    class Members:
        def member_logits(
            self,
            x: Tensor,
            draws: int = 4,
            *,
            generator: torch.Generator | None = None,
            stratified: bool = False,
        ) -> Tensor:
            del generator, stratified
            return x.expand(draws, 1, *x.shape)

    model = Members()
    assert C.need_members(model, "arc") is model


@given(numerator=st.integers(0, 255))
def test_fractions_of_255_are_read_and_written_back(numerator: int) -> None:
    text = f"{numerator}/255"
    value = C.parse_fraction("eps", text)
    assert value == numerator / 255
    assert C.format_fraction(value) == text


@given(value=st.floats(0, 1))
def test_any_number_is_written_so_that_it_reads_back(value: float) -> None:
    # Six significant digits, or a fraction within 1e-6/255 of the number.
    assert C.parse_fraction("eps", C.format_fraction(value)) == pytest.approx(value, rel=1e-5, abs=1e-8)


def test_describe_is_the_first_line_or_the_kind() -> None:
    assert C.describe(ValueError("one\ntwo")) == "one"
    assert C.describe(KeyError()) == "KeyError"
