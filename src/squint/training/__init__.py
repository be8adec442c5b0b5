"""Training: the configuration, the loss term by term, the loop and its checkpoints."""

from squint.training.config import ObjectiveConfig, TrainConfig
from squint.training.interrupt import TrainingStopped
from squint.training.loop import Watcher, fit
from squint.training.objective import EnsembleObjective, Objective

__all__ = [
    "EnsembleObjective",
    "Objective",
    "ObjectiveConfig",
    "TrainConfig",
    "TrainingStopped",
    "Watcher",
    "fit",
]
