"""A study that several processes do together: who they are, and the run folder that the first one writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from squint import _ranks
from squint._checks import InputError, check_number
from squint.study.config import RecipeConfig
from squint.study.folder import RunFolder
from squint.study.keeping import held
from squint.training import TrainConfig
from squint.training.launching import devices_of, make_fabric


def with_devices(recipe: RecipeConfig) -> RecipeConfig:
    """Return the recipe with the number of processes that will do it: another number is another training.

    Raises:
        squint.InputError: `train.devices` is not what was started, or more than the machine has.
    """
    devices = devices_of(recipe.train)
    return (
        recipe
        if devices == recipe.train.devices
        else replace(recipe, train=replace(recipe.train, devices=devices))
    )


def bring_together(recipe: RecipeConfig) -> None:
    """Start the processes that the recipe asks for, or join those that were started."""
    if recipe.train.devices > 1:
        make_fabric(recipe.train)


def join_started(devices: int = 1) -> None:
    """Join the processes that torchrun started for a command, or start them; alone there is nothing to do.

    Args:
        devices: processes on this machine that the command asks for.

    Raises:
        squint.InputError: not what torchrun started, or more than this machine has.
    """
    count = max(check_number("devices", devices, 1, whole=True), _ranks.started())
    if count == 1:
        return
    try:
        make_fabric(TrainConfig(batch_size=2 * count, devices=devices))
    except InputError as error:
        raise InputError(str(error).replace("train.devices", "devices")) from None


@contextmanager
def held_by_first(folder: Path, *, make: bool = False) -> Iterator[None]:
    """Let the first process keep other jobs that write into a folder out of it; see `keeping.held`."""
    with ExitStack() as stack:

        def hold() -> None:
            # Processes that are still to be brought together all get here.
            if _ranks.rank() == 0:
                stack.enter_context(held(folder, make=make))

        _ranks.first(hold)
        yield


def opened(
    path: Path, config: RecipeConfig, *, resume: bool, overwrite: bool, data: Mapping[str, str] | None = None
) -> RunFolder:
    """Return the run folder, held by this process or by the first one of its job; see `RunFolder`."""
    kind = JobFolder if _ranks.count() > 1 else RunFolder
    return kind(path, config, resume=resume, overwrite=overwrite, data=data)


class JobFolder(RunFolder):
    """The run folder of several processes: the first one holds, reads and writes it, the others are told.

    Arguments and errors are those of `RunFolder`.
    """

    def __init__(
        self,
        path: Path,
        config: RecipeConfig,
        *,
        resume: bool,
        overwrite: bool,
        data: Mapping[str, str] | None = None,
    ) -> None:
        def hold() -> None:
            super(JobFolder, self).__init__(path, config, resume=resume, overwrite=overwrite, data=data)

        self.path = path
        _ranks.agreed(None if data is None else dict(data), "the hash of every part of the data")
        _ranks.first(hold)

    def close(self) -> None:
        """Let go of the folder."""
        if _ranks.rank() == 0:
            super().close()

    def training_seconds(self, system: str) -> float | None:
        """Return how long a system's finished training took, or None where it is still to be done."""
        read = super().training_seconds
        return _ranks.first(lambda: read(system))

    def finished_attack(self, system: str) -> dict[str, Any] | None:
        """Return a system's facts, records and plane points, or None where it is still to be attacked."""
        read = super().finished_attack
        return _ranks.first(lambda: read(system))

    def log(self, system: str, entry: dict[str, Any]) -> None:
        """Put an epoch's entry in `log.jsonl`, in the place of one of the same system and epoch."""
        if _ranks.rank() == 0:
            super().log(system, entry)
