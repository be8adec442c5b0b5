"""An ensemble that decides by majority."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from squint.ensemble import Ensemble


class VotingEnsemble(Ensemble):
    """An `Ensemble` whose deployed prediction is the class most members vote for.

    Attacks ask its members' logits and ascend the mean probability, which has gradients; evaluation scores
    the vote, through `pool_members`. Ties go to the tied class with the largest mean probability.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the log of the pooled votes (batch, classes), mean over draws; `x` as in `Ensemble`."""
        probabilities = self.member_logits(x, self.draws).softmax(-1)
        return self.pool_members(probabilities).mean(0).log()

    def pool_members(self, probabilities: Tensor) -> Tensor:
        """Return probabilities (..., members, batch, classes) pooled to (..., batch, classes).

        Mostly the share of votes, and so little of the mean probability, 1/(members + 2), that it only breaks
        ties: one vote more weighs (1 - 1/(members + 2))/members, which is above it.
        """
        members = probabilities.shape[-3]
        votes = F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).to(probabilities.dtype)
        share = 1 / (members + 2)
        return (1 - share) * votes.mean(-3) + share * probabilities.mean(-3)
