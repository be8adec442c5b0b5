"""Are different quantizations collectively more robust than each? What a study of it trains and attacks.

A recipe of kind "hypothesis" names collections of members. Its members are trained apart, each once, and put
together without further training, so that a collection differs from its parts by nothing but being one:

| evaluated | trained for | why |
|---|---|---|
| every member alone | the recipe's epochs | the best member that a collection has to beat |
| every subset of a collection whose members differ | the same members | what each member adds |
| every collection | the same members | equally quantized ones say what averaging alone is worth |
| every kind of member alone, longer | as many passes as a collection | the best member at equal compute |

All deploy the same number of draws in all, and every gradient of an attack on them takes as many passes
through members, so a member alone is attacked with more draws than a collection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations

from squint import data as D
from squint._checks import InputError
from squint._random import derive_seed
from squint.ensemble import Ensemble
from squint.evaluation.budgets import Budget
from squint.evaluation.settings import AttackSetting
from squint.study.config import MemberConfig, RecipeConfig, SystemConfig
from squint.study.systems import build_system

HYPOTHESIS = "hypothesis"
EQUAL_PASSES = "equal passes"


@dataclass(frozen=True)
class Collection:
    """A collection of the recipe, by the names of what is evaluated.

    Attributes:
        name: of the collection.
        members: its members alone, in order.
        longer: the same kinds of members alone, trained as long as the collection; each kind once.
        different: whether its members differ in their quantization.
        equals: collections of members that are all of one of its members' kinds.
    """

    name: str
    members: tuple[str, ...]
    longer: tuple[str, ...]
    different: bool
    equals: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is trained and what is put together.

    Attributes:
        source: the recipe as it was written.
        recipe: the same with every member and subset as a system.
        starts: the systems that are trained, and the collection and place whose first weights they have.
        parts: the systems that are put together, and their members' systems.
        collections: the recipe's collections.
    """

    source: RecipeConfig
    recipe: RecipeConfig
    starts: dict[str, tuple[str, int]]
    parts: dict[str, tuple[str, ...]]
    collections: tuple[Collection, ...]

    def built(self, name: str, train: D.ImageData) -> Ensemble:
        """Return a member alone with the first weights that it has in its collection."""
        collection, place = self.starts[name]
        members = build_system(self.source, collection, train).members
        return Ensemble([members[place]], self.recipe.systems[name].draws)

    def seed(self, name: str, seed: int) -> int:
        """Return the seed of a member's training: members of a collection share neither noise nor batches."""
        place = self.starts[name][1]
        return seed if place == 0 else derive_seed(seed, "member", place)

    def setting(self, name: str, setting: AttackSetting) -> AttackSetting:
        """Return an attack with as many passes per gradient for every system."""
        eot = self._draws(name, setting.eot)
        # Only the seed protocol itself is called by that name.
        return replace(setting, eot=eot, preset=setting.preset if eot == setting.eot else EQUAL_PASSES)

    def budget(self, name: str, budget: Budget) -> Budget:
        """Return the ladder's budget with as many passes per gradient for every system."""
        rungs = tuple(
            replace(rung, moves=tuple(replace(move, eot=self._draws(name, move.eot)) for move in rung.moves))
            for rung in budget.rungs
        )
        limit = budget.max_gradients
        most, own = max(self._sizes()), len(self.recipe.systems[name].members)
        return replace(
            budget,
            name=f"{budget.name}, {EQUAL_PASSES}",
            rungs=rungs,
            max_gradients=None if limit is None else limit * most // own,
        )

    def _sizes(self) -> set[int]:
        return {len(system.members) for system in self.recipe.systems.values()}

    def _draws(self, name: str, eot: int) -> int:
        """Return the draws that take as many passes as `eot` draws of a collection, or a few more."""
        sizes = self._sizes()
        step = math.lcm(*sizes)
        passes = step * math.ceil(eot * max(sizes) / step)
        return passes // len(self.recipe.systems[name].members)


def plan_of(recipe: RecipeConfig) -> Plan | None:
    """Return what a recipe of kind "hypothesis" trains and evaluates, or None for another kind.

    Raises:
        squint.InputError: collections that cannot be compared, with the reason.
    """
    if recipe.kind != HYPOTHESIS:
        return None
    _check(recipe)
    everyone = [m for system in recipe.systems.values() for m in system.members]
    systems: dict[str, SystemConfig] = dict(recipe.systems)
    starts: dict[str, tuple[str, int]] = {}
    parts: dict[str, tuple[str, ...]] = {}
    longest: dict[str, list[str]] = {}

    def add(name: str, system: SystemConfig) -> str:
        if name in systems:
            raise InputError(f"systems has {name!r}, which a hypothesis needs for a part; use another name")
        systems[name] = system
        return name

    # Trained once for all collections that train it alike.
    alone: dict[tuple[str, int], str] = {}
    longer: dict[str, str] = {}
    for collection, system in recipe.systems.items():
        total = system.draws * len(system.members)
        whole: list[str] = []
        longest[collection] = []
        for place, member in enumerate(system.members):
            single = replace(system, members=(member,), draws=total, description="")
            title, alike = described(member, everyone), repr(replace(single, title=""))
            if (alike, place) not in alone:
                start = replace(single, title=f"{title}, start {place + 1}")
                alone[alike, place] = add(f"member-{len(alone) + 1}", start)
                starts[alone[alike, place]] = (collection, place)
            if alike not in longer:
                size = len(system.members)
                epochs = size * (recipe.train.epochs if system.epochs is None else system.epochs)
                as_long = replace(single, title=f"{title}, {size} × as long", epochs=epochs)
                longer[alike] = add(f"longer-{len(longer) + 1}", as_long)
                starts[longer[alike]] = (collection, place)
            whole.append(alone[alike, place])
            longest[collection].append(longer[alike])
        parts[collection] = tuple(whole)
        for places in _subsets(system):
            part = replace(
                system,
                members=tuple(system.members[place] for place in places),
                draws=total // len(places),
                title=f"{system.title or collection}: members {' and '.join(str(p + 1) for p in places)}",
                description="",
            )
            name = add(f"{collection}-{''.join(str(place + 1) for place in places)}", part)
            parts[name] = tuple(whole[place] for place in places)
    collections = tuple(
        Collection(
            name,
            parts[name],
            tuple(dict.fromkeys(longest[name])),
            len(set(system.members)) > 1,
            tuple(
                other
                for other, each in recipe.systems.items()
                if len(set(each.members)) == 1
                and each.members[0] in system.members
                and _training(each) == _training(system)
            ),
        )
        for name, system in recipe.systems.items()
    )
    whole_recipe = replace(recipe, systems=systems, headline=recipe.headline_system)
    return Plan(recipe, whole_recipe, starts, parts, collections)


def described(member: MemberConfig, among: Sequence[MemberConfig]) -> str:
    """Return how a member is quantized, in words, as far as it is not like all the others."""
    words = {
        "weight_bits": f"{member.weight_bits or 32}-bit weights",
        "activation_bits": f"{member.activation_bits or 32}-bit activations",
        "first_last_bits": f"{member.first_last_bits or 32}-bit ends",
        "input_bits": f"{member.input_bits or 32}-bit input",
        "noise": f"{member.noise} noise",
        "input_width": f"input noise {member.input_width:g}",
        "activation_width": f"activation noise {member.activation_width:g}",
        "granularity": f"noise per {member.granularity}",
        "input_range": f"input levels {member.input_range[0]:.2f} to {member.input_range[1]:.2f}",
    }
    differing = [
        field.name for field in fields(member) if len({getattr(each, field.name) for each in among}) > 1
    ]
    return ", ".join(words[name] for name in differing) or "the one kind of member"


def _training(system: SystemConfig) -> tuple[object, ...]:
    return system.objective, system.training_draws, system.epochs


def _subsets(system: SystemConfig) -> Iterator[tuple[int, ...]]:
    """Yield the places of every subset between one member and all; none where the members are alike."""
    if len(set(system.members)) > 1:
        for size in range(2, len(system.members)):
            yield from combinations(range(len(system.members)), size)


def _check(recipe: RecipeConfig) -> None:
    if recipe.equal_compute:
        raise InputError(
            "equal_compute is true; allowed in a hypothesis: false, its parts have equal passes already"
        )
    first, model = next(iter(recipe.systems.items()))
    for name, system in recipe.systems.items():
        size = len(system.members)
        if size < 2:
            raise InputError(
                f"systems.{name} has one member; allowed in a hypothesis: collections of two or more"
            )
        if (size, system.draws) != (len(model.members), model.draws):
            raise InputError(
                f"systems.{name} has {size} members and {system.draws} draws, {first} has "
                f"{len(model.members)} and {model.draws}; allowed in a hypothesis: equal numbers"
            )
        if system.rival is not None:
            raise InputError(
                f"systems.{name} has rival {system.rival!r}; allowed in a hypothesis: squint's own members"
            )
        if system.objective.redundancy or system.objective.conditional_redundancy:
            raise InputError(
                f"systems.{name} has terms between members; allowed in a hypothesis: redundancy 0 and "
                "conditional_redundancy 0, its members are trained apart"
            )
        shared = math.lcm(*range(1, size + 1))
        if system.draws * size % shared:
            raise InputError(
                f"systems.{name} has {system.draws * size} draws over its {size} members; allowed in a "
                f"hypothesis: a multiple of {shared}, to be shared by any of them"
            )
