"""Estimators of entropy and mutual information, in nats: pure functions on tensors.

Which to use, their formulas, which bound each one is and its measured bias: `docs/information.md`.
"""

from squint.information.baseline import Baseline, bootstrap_interval, shuffled_baseline
from squint.information.gaussian import gaussian_mutual_information
from squint.information.kernel import gram, label_gram
from squint.information.labels import (
    JointTable,
    joint_table,
    soft_label_conditional_mutual_information,
    soft_label_mutual_information,
    table_mutual_information,
)
from squint.information.neighbours import ksg
from squint.information.neural import GaussianCritic, SeparableCritic, club, fit_critic, infonce
from squint.information.pairs import (
    PairwiseInformation,
    conditional_redundancy,
    pairwise_information,
    redundancy,
)
from squint.information.predictive import PredictiveInformation, predictive_information
from squint.information.renyi import (
    gram_entropy,
    renyi_conditional_mutual_information,
    renyi_conditional_total_correlation,
    renyi_entropy,
    renyi_joint_entropy,
    renyi_mutual_information,
    renyi_total_correlation,
)

__all__ = [
    "Baseline",
    "GaussianCritic",
    "JointTable",
    "PairwiseInformation",
    "PredictiveInformation",
    "SeparableCritic",
    "bootstrap_interval",
    "club",
    "conditional_redundancy",
    "fit_critic",
    "gaussian_mutual_information",
    "gram",
    "gram_entropy",
    "infonce",
    "joint_table",
    "ksg",
    "label_gram",
    "pairwise_information",
    "predictive_information",
    "redundancy",
    "renyi_conditional_mutual_information",
    "renyi_conditional_total_correlation",
    "renyi_entropy",
    "renyi_joint_entropy",
    "renyi_mutual_information",
    "renyi_total_correlation",
    "shuffled_baseline",
    "soft_label_conditional_mutual_information",
    "soft_label_mutual_information",
    "table_mutual_information",
]
