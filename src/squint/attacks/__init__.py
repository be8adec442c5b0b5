"""Attacks on the deployed rule: the mean probability over members and draws."""

from squint.attacks.adapters import as_module, external, from_torchattacks
from squint.attacks.apgd import apgd, apgd_targeted
from squint.attacks.arc import arc
from squint.attacks.detector import agreement, lagrangian, orthogonal, selective
from squint.attacks.fgsm import fgsm
from squint.attacks.members import member_pgd
from squint.attacks.mora import mora
from squint.attacks.noise import random_noise
from squint.attacks.pgd import pgd
from squint.attacks.pursuit import DeployedDetector
from squint.attacks.spsa import spsa
from squint.attacks.square import square
from squint.attacks.targeted import targeted
from squint.attacks.transfer import transfer

__all__ = [
    "DeployedDetector",
    "agreement",
    "apgd",
    "apgd_targeted",
    "arc",
    "as_module",
    "external",
    "fgsm",
    "from_torchattacks",
    "lagrangian",
    "member_pgd",
    "mora",
    "orthogonal",
    "pgd",
    "random_noise",
    "selective",
    "spsa",
    "square",
    "targeted",
    "transfer",
]
