"""`squint predict`: what an exported model says of image files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from squint._checks import InputError
from squint._files import check_output
from squint.export.onnx import OnnxModel, Prediction, predict, read_images


@dataclass(frozen=True)
class PredictOptions:
    """Classify image files with an exported model.

    Examples:
      squint predict stochastic-nearest.onnx seven.png
      squint predict model.onnx images/*.png --output predictions.json
    """

    model: tyro.conf.Positional[Path]
    """Model (*.onnx) of squint export."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files of the model's size."""
    batch_size: int = 64
    """Images at a time."""
    output: Path | None = None
    """JSON file for the predictions."""


@dataclass(frozen=True)
class Predicted:
    """One file's prediction."""

    file: Path
    prediction: Prediction

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"file": str(self.file)} | asdict(self.prediction)

    def __str__(self) -> str:
        """Return one line for people."""
        p = self.prediction
        flag = {None: ", no detector", False: ", not flagged", True: ", FLAGGED as suspicious"}[p.flagged]
        return f"{self.file}: {p.label if p.name is None else p.name} ({p.probability:.1%}){flag}"


def predict_files(options: PredictOptions) -> list[Predicted]:
    """Return a prediction per image file.

    Raises:
        squint.InputError: the extra `onnx` is missing, no model of squint's, or a file that is no image of
            its size.
    """
    check_output(options.output)
    if not options.images:
        raise InputError("images is empty; allowed: one file or more")
    model = OnnxModel(options.model)
    channels = model.image_shape[0]
    images = read_images(options.images, channels if isinstance(channels, int) else 0)
    found = predict(model, images, batch_size=options.batch_size)
    return [Predicted(file, prediction) for file, prediction in zip(options.images, found, strict=True)]
