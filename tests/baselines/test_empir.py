"""EMPIR: the vote on cases worked out by hand, what is scored and what is attacked, the paper's members."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint.attacks.objectives import log_mean_probability
from squint.baselines import ConvertedNetwork, VotingEnsemble, make_rival
from squint.ensemble import Ensemble
from squint.evaluation.scoring import score
from squint.evaluation.selection import DEPLOYED, rule_margins
from squint.study.costs import passes_per_step
from squint.study.recipes import checked
from tests.baselines.models import linear
from tests.baselines.tiny import setup_of, source, system
from tests.study.tiny import PLAIN

SURE, UNSURE = (0.01, 0.98, 0.01), (0.4, 0.3, 0.3)
"""One member that is sure of class 1, and two that lean to class 0: the mean says 1, the vote 0."""


def voters(*probabilities: tuple[float, ...], kind: type[Ensemble] = VotingEnsemble) -> Ensemble:
    """Members that give the same probabilities for the image (1)."""
    return kind(
        [linear(torch.tensor(p, dtype=torch.float64).log()[:, None]) for p in probabilities], 1
    ).eval()


def one() -> Tensor:
    return torch.ones(1, 1, 1, 1, dtype=torch.float64)


def test_two_votes_beat_one_sure_member() -> None:
    ens = voters(SURE, UNSURE, UNSURE)
    pooled = ens(one()).exp()[0]
    # Votes 2/3, 1/3, 0 with weight 4/5; mean probabilities 0.27, 0.527, 0.203 with weight 1/5.
    assert pooled.tolist() == pytest.approx([0.8 * 2 / 3 + 0.054, 0.8 / 3 + 0.316 / 3, 0.122 / 3], abs=1e-12)
    assert int(pooled.argmax()) == 0
    assert int(log_mean_probability(ens.member_logits(one(), 1)).argmax()) == 1


@pytest.mark.parametrize("members", [2, 3, 4, 7])
def test_no_probability_outweighs_a_vote(members: int) -> None:
    """The closest case: one vote more, whose members are barely for it, against members that are sure."""
    share = 1 / (members + 2)
    one_vote_more = (1 - share) / members
    assert one_vote_more > share


def test_a_tie_goes_to_the_larger_mean_probability() -> None:
    assert int(voters((0.6, 0.4, 0.0), (0.1, 0.9, 0.0))(one()).argmax()) == 1
    # Class 2 has the largest mean probability but no vote.
    tied = voters((0.5, 0.02, 0.48), (0.02, 0.5, 0.48), (0.51, 0.01, 0.48), (0.01, 0.51, 0.48))
    assert int(tied(one()).argmax()) in (0, 1)


def test_evaluation_scores_the_vote() -> None:
    x, y = one(), torch.tensor([0])
    for kind, correct, sign in ((VotingEnsemble, 1.0, 1), (Ensemble, 0.0, -1)):
        ens = voters(SURE, UNSURE, UNSURE, kind=kind)
        assert score(ens, x, y, draws=1, resubmissions=4, seed=0, keys=("t",)).accuracy == correct
        margins = rule_margins(ens, x, y, draws=1, resubmissions=1, generator=source())[DEPLOYED]
        assert float(margins.sign()) == sign


def test_members_have_the_papers_precisions() -> None:
    ens = system(make_rival("empir"))
    found = []
    for member in ens.members:
        plain = member.rival if isinstance(member, ConvertedNetwork) else None
        found.append(None if plain is None else (plain["name"], plain["options"]))
    bits = [{"weight_bits": 4, "activation_bits": 2}, {"weight_bits": 2, "activation_bits": 2}]
    assert found == [("dorefa", bits[0]), ("dorefa", bits[1]), None]


def test_a_recipe_with_members_of_its_own_is_refused() -> None:
    for count in (2, 4):
        system = {"rival": "empir", "members": [{}] * count}
        with pytest.raises(InputError, match=rf"systems\.x: members has {count} entries; rival empir"):
            checked({**PLAIN, "systems": {"x": system}}, "")
    recipe = checked({**PLAIN, "systems": {"x": {"rival": "empir"}}}, "")
    assert passes_per_step(recipe.systems["x"]) == 3


def test_refusals() -> None:
    with pytest.raises(InputError, match="members has 2 entries; rival empir allowed: none"):
        make_rival("empir").check(setup_of("empir", members=2))
    with pytest.raises(InputError, match=r"precisions is .* allowed: two different precisions or more"):
        make_rival("empir", {"precisions": [[2, 2], [2, 2]]})
    with pytest.raises(InputError, match="rival empir: precisions"):
        make_rival("empir", {"precisions": [[9, 2], None]})
