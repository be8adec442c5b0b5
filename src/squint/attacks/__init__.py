"""Attacks on the deployed rule: the mean probability over members and draws."""

from squint.attacks.apgd import apgd, apgd_targeted
from squint.attacks.arc import arc
from squint.attacks.fgsm import fgsm
from squint.attacks.members import member_pgd
from squint.attacks.mora import mora
from squint.attacks.noise import random_noise
from squint.attacks.pgd import pgd
from squint.attacks.spsa import spsa
from squint.attacks.square import square
from squint.attacks.targeted import targeted
from squint.attacks.transfer import transfer

__all__ = [
    "apgd",
    "apgd_targeted",
    "arc",
    "fgsm",
    "member_pgd",
    "mora",
    "pgd",
    "random_noise",
    "spsa",
    "square",
    "targeted",
    "transfer",
]
