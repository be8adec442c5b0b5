"""Running attacks on one ensemble: batch by batch, in every process, kept and taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from squint import _ranks
from squint._random import derive_generator
from squint.ensemble import Ensemble
from squint.evaluation.detection.kept import KeptPoints
from squint.evaluation.machine import Fitting
from squint.evaluation.sharding import sharded

Attack = Callable[[Tensor, Tensor, Tensor | None, torch.Generator, int | None], Sequence[Tensor]]
"""(images, labels, start, generator, chunk) -> what it leaves, one set of images for each of its names."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Name:
    """Under which name an attack's images are kept, and a hash of everything that they depend on."""

    keys: tuple[str, ...]
    made_by: str


@dataclass
class Campaign:
    """Attacks on the same images of one ensemble.

    Attributes:
        ens: what is attacked.
        images: (n, ...).
        labels: (n,).
        system: name of the ensemble, part of all keys.
        seed: base of the streams.
        batch_size: images attacked at once.
        fitting: how much fits into memory.
        kept: where finished attacks are kept; None: nowhere.
        total: attacks in all.
        progress: called with attacks done and attacks in all.
        done: attacks done.
        seconds: by keys, how long the attack took, whenever that was; those that ran together share it.
    """

    ens: Ensemble
    images: Tensor
    labels: Tensor
    system: str
    seed: int
    batch_size: int
    fitting: Fitting
    kept: KeptPoints | None
    total: int
    progress: Progress | None
    done: int = 0
    seconds: dict[tuple[str, ...], float] = field(default_factory=dict)

    def run(
        self,
        attack: Callable[[Sequence[int]], Attack],
        eot: int,
        start: Tensor | None,
        stream: Sequence[str],
        names: Sequence[Name],
    ) -> list[Tensor]:
        """Return the images that an attack left, one set per name: kept ones, or those of a new run.

        Args:
            attack: given the places of the names that are not kept, the attack that finds their images.
            eot: its draws per gradient.
            start: where it starts; None: as it likes.
            stream: keys of its randomness, the same whichever of the names are asked for.
            names: of what it leaves.
        """
        found = [self._read(name) for name in names]
        missing = [place for place, held in enumerate(found) if held is None]
        if missing:
            started = time.perf_counter()
            left = self._attacked(attack(missing), eot, start, stream)
            spent = (time.perf_counter() - started) / len(missing)
            for place, images in zip(missing, left, strict=True):
                found[place] = images, spent
                if self.kept is not None and _ranks.rank() == 0:
                    self.kept.write((self.system, *names[place].keys), names[place].made_by, images, spent)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        every = []
        for name, outcome in zip(names, found, strict=True):
            assert outcome is not None
            self.seconds[name.keys] = outcome[1]
            every.append(outcome[0].to(self.images))
        return every

    def _read(self, name: Name) -> tuple[Tensor, float] | None:
        if self.kept is None:
            return None
        kept = self.kept
        return _ranks.first(lambda: kept.read((self.system, *name.keys), name.made_by))

    def _attacked(
        self, attack: Attack, eot: int, start: Tensor | None, stream: Sequence[str]
    ) -> list[Tensor]:
        keys = (self.system, *stream)

        def attacked(chunk: int) -> list[Tensor]:
            batch = slice(chunk * self.batch_size, (chunk + 1) * self.batch_size)
            begun = None if start is None else start[batch]

            def once(at_once: int | None) -> Sequence[Tensor]:
                generator = derive_generator(self.seed, "detection attack", *keys, chunk)
                return attack(self.images[batch], self.labels[batch], begun, generator, at_once)

            left = self.fitting.forward(self.ens, lambda: self.fitting.gradients(once, eot))
            return [images.cpu() for images in left]

        chunks = -(-len(self.images) // self.batch_size)
        parts = sharded(chunks, attacked, " ".join(keys))
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
