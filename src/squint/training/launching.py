"""The processes of a job, brought together by lightning-fabric: one path for CPU, GPU and several machines.

A job has several processes because `train.devices` asks for them (Fabric then starts this command, or the
user's script, once more for each) or because torchrun started it several times, on one machine or more.
"""

from __future__ import annotations

import atexit
import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout

from squint import _ranks
from squint._checks import InputError
from squint.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


JOINING = timedelta(minutes=5)
"""How long the processes of a job may take to come together."""


def devices_of(config: TrainConfig) -> int:
    """Return how many processes will share the training, over all machines.

    Raises:
        squint.InputError: `train.devices` is neither 1 nor what torchrun started, or more than this machine
            has.
    """
    started = _ranks.started()
    if started > 1:
        if config.devices not in (1, started):
            raise InputError(
                f"train.devices is {config.devices}, and this job was started with {started} processes; "
                f"allowed: {started}, or leave it out"
            )
        return started
    _check_machine(config.devices, _accelerator(config))
    return config.devices


def make_fabric(config: TrainConfig) -> Fabric:
    """Return the launched device layer that the configuration asks for.

    Where processes are still to be started this starts them; where they are, it joins the same group again.

    Raises:
        squint.InputError: CUDA is asked for and missing, or there are not as many devices as asked for.
    """
    # Imported here: it takes seconds, which commands that do not train should not pay.
    from lightning_fabric import Fabric

    from squint.training.watching import end_with_parent

    accelerator = _accelerator(config)
    devices = devices_of(config)
    if config.batch_size % devices:
        raise InputError(
            f"train.batch_size is {config.batch_size}; allowed: a multiple of the {devices} devices"
        )
    plugins = _precision(config, accelerator)
    if devices == 1:
        fabric = Fabric(accelerator=accelerator, devices=1, plugins=plugins)
        fabric.launch()
        return fabric
    local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    _check_machine(local, accelerator)
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=devices // local,
        strategy=_replicas(accelerator),
        plugins=[_environment(), *plugins],
    )
    # Fabric announces on stderr, from every process, that there are several.
    log = logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        fabric.launch()
    except dist.DistError as error:
        raise _ranks.LostProcess(
            f"the {devices} processes of this job have not come together within {JOINING}: one died, or does "
            "not reach the first one; start all of them again, with --resume where the run was begun"
        ) from error
    finally:
        log.setLevel(level)
    # Registered once, however often the same group is joined.
    atexit.unregister(_ranks.leave)
    atexit.register(_ranks.leave)
    # Starting takes as long as the slowest disk; once all are there, silence means that one is lost.
    _set_pg_timeout(_ranks.PATIENCE, dist.group.WORLD)
    if fabric.local_rank > 0 and not _is_elastic():
        end_with_parent(devices, fabric.global_rank)
    return fabric


def _accelerator(config: TrainConfig) -> str:
    available = torch.cuda.is_available()
    if config.accelerator == "cuda" and not available:
        raise InputError("train.accelerator is 'cuda'; this machine has no CUDA device, allowed: auto, cpu")
    return "cuda" if available and config.accelerator != "cpu" else "cpu"


def _check_machine(devices: int, accelerator: str) -> None:
    if accelerator == "cuda":
        most, kind = torch.cuda.device_count(), "CUDA devices"
    else:
        most, kind = len(os.sched_getaffinity(0)), "processor cores, one for each process"
    if devices > max(most, 1):
        raise InputError(
            f"train.devices is {devices}; allowed: at most {most} on this machine ({most} {kind}); several "
            "machines are used with torchrun"
        )


def _precision(config: TrainConfig, accelerator: str) -> list[Any]:
    from lightning_fabric.plugins import MixedPrecision

    class Pixels(MixedPrecision):
        """Mixed precision that leaves images as they are: eight bits of mantissa would move the pixels."""

        def convert_input(self, data: object) -> object:
            return data

    if config.precision == "bf16-mixed" or (config.precision == "16-mixed" and accelerator == "cuda"):
        return [Pixels(config.precision, accelerator)]
    return []


def _is_elastic() -> bool:
    """Return whether torchrun started the processes; it watches them itself."""
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return bool(TorchElasticEnvironment.detect())


def _environment() -> Any:
    """Return who started the processes, said outright: a batch job's variables alone do not mean `srun`."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return TorchElasticEnvironment() if _is_elastic() else LightningEnvironment()


def _replicas(accelerator: str) -> Any:
    from lightning_fabric.strategies.ddp import DDPStrategy

    from squint.training.watching import WatchedLauncher

    class Replicas(DDPStrategy):
        """Whole copies of the network in every process, whose gradients the loop averages itself.

        Torch's own wrapper wants every parameter used and one forward pass per step; a loss that looks at
        single members, or at the network twice (smoothness), keeps neither.
        """

        def _configure_launcher(self) -> None:
            assert self.cluster_environment is not None
            self._launcher = WatchedLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

        def setup_module(self, module: nn.Module) -> Any:
            _ranks.share_state(module)
            return module

    # Plain values and the records of evaluation lie on the CPU on every machine.
    backend = "gloo" if accelerator == "cpu" else "cpu:gloo,cuda:nccl"
    return Replicas(process_group_backend=backend, timeout=JOINING)
