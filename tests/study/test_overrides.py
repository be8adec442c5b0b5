"""Options over a recipe, and the parser's messages in one line."""

from __future__ import annotations

import pytest

from squint._checks import InputError
from squint.study import load_recipe
from squint.study.overrides import one_line, overridden
from tests.study.tiny import tiny


def test_every_kind_of_field_can_be_set() -> None:
    words = (
        "--output out --resume --train.epochs 5 --eps 5/255 --curve 1/255 2/255 --attack.attacks fgsm pgd "
        "--systems.noisy.members.1.weight-bits None --systems.noisy.objective.agreement 2.5 --train.flip "
        "--data-dir there --headline plain --seed 3"
    )
    options, recipe = overridden(tiny(), words.split(), "squint run tiny")
    assert (options.output, options.resume, options.overwrite) == ("out", True, False)
    member = {"weight_bits": None, "activation_bits": 4, "first_last_bits": 8, "input_bits": 2}
    expected = tiny(
        train={"epochs": 5, "flip": True},
        eps="5/255",
        curve=["1/255", "2/255"],
        attack={"attacks": ["fgsm", "pgd"]},
        data_dir="there",
        headline="plain",
        seed=3,
        systems={
            "noisy": {
                "objective": {"agreement": 2.5, "conditional_redundancy": 0.1},
                "members": [
                    {"weight_bits": 2, "activation_bits": 4, "first_last_bits": 8, "input_bits": 1},
                    member,
                ],
            }
        },
    )
    assert recipe == expected


def test_no_words_change_nothing() -> None:
    recipe = load_recipe("cifar10")
    options, same = overridden(recipe, [], "squint run cifar10")
    assert same == recipe
    assert options.output is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--train.epochs five", "--train.epochs is 'five'; allowed: a whole number"),
        ("--train.learning-rate x", "--train.learning-rate is 'x'; allowed: a number"),
        ("--train.epochs -1", "train.epochs is -1; allowed: greater than or equal to 0"),
        ("--train.epoch 5", "unknown option --train.epoch (did you mean '--train.epochs'?)"),
        ("--bogus", "unknown option --bogus; see squint run tiny --help"),
        ("stray", "'stray' belongs to no option; see squint run tiny --help"),
        ("--eps", "Missing value for argument '--eps'"),
        ("--eps 5/0", "eps is '5/0'; allowed: a fraction such as 5/255 or a number in [0, 1]"),
        ("--eps -1/255", "eps is '-1/255'; allowed: a number in [0, 1]"),
        ("--curve 1/255 nope", "curve is ('1/255', 'nope'); allowed: a fraction"),
        ("--systems.noisy.members.0.weight-bits 9", ".members.0.weight_bits is 9; allowed: a whole number"),
        ("--validation two", "--validation is 'two'; allowed: None or a whole number"),
        ("--systems.noisy.members.1.noise pink", ".members.1.noise is 'pink'; allowed: uniform, logistic, g"),
        ("--systems.nosy.draws 2", "option --systems.nosy.draws (did you mean '--systems.noisy.draws'?)"),
        ("--headline nosy", "headline is 'nosy'; allowed: plain, noisy"),
        ("--train.objective.agreement 3", "train.objective and train.draws are set"),
    ],
)  # fmt: skip
def test_mistakes(words: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        overridden(tiny(), words.split(), "squint run tiny")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


FRAMED = """\
╭─ Parsing error ──────────────────────╮
│ Unrecognized options: --a.bee, 5     │
│ ──────────────────────────────────── │
│ Perhaps you meant:                   │
│     --a.be INT                       │
╰──────────────────────────────────────╯
"""
UNFRAMED = """\
 Unrecognized options
 --------------------------------------
  Unrecognized options: --a.bee, 5
  -------------------------------------
  Perhaps you meant:
      --a.be INT
"""


@pytest.mark.parametrize("box", [FRAMED, UNFRAMED])
def test_boxes_of_every_terminal(box: str) -> None:
    line = one_line(box, "squint run x")
    assert line == "unknown option --a.bee (did you mean '--a.be'?); see squint run x --help"


def test_every_mistake_is_named() -> None:
    with pytest.raises(InputError) as caught:
        overridden(tiny(), ["--eps", "2", "--attack.images", "0"], "squint run tiny")
    assert "eps is '2'" in str(caught.value)
    assert "attack.images is 0" in str(caught.value)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        overridden(tiny(), ["--help"], "squint run tiny")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("--output", "--train.epochs", "Passes over the training images.", "(default: 24/255)",
                  "--systems.noisy.members.1.weight-bits", "--data-dir"):  # fmt: skip
        assert words in text, words
