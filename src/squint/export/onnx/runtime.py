"""Running an exported graph: a callable for attacks, and predictions for images."""

from __future__ import annotations

import json
import math
import platform
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from squint._checks import InputError, check_images, check_number, describe
from squint._files import read_bytes
from squint.data.pictures import open_picture

MAX_BYTES = 2**30
MISSING = "{package} is not installed; it comes with the extra: pip install 'squint-nn[onnx]'"


def need(package: str) -> Any:
    """Return the imported package, or raise `InputError` that names the extra it comes with."""
    try:
        return __import__(package)
    except ImportError:
        raise InputError(MISSING.format(package=package)) from None


def saturates() -> bool:
    """Return whether this CPU adds pairs of 8-bit products in 16 bits: x86 without VNNI instructions.

    Where the CPU cannot be asked, x86 counts as one that does.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True


def open_session(model: bytes | str | Path, *, optimized: bool = True, threads: int | None = None) -> Any:
    """Return an ONNX Runtime session on the CPU, its noise seeded from fresh entropy.

    Two sessions of one process would otherwise draw the same noise.

    Raises:
        squint.InputError: the runtime is missing, or the file is no model that it can run.
    """
    ort = need("onnxruntime")
    # The seed is the process's, and a session takes it up when it is made.
    ort.set_seed(secrets.randbits(31))
    options = ort.SessionOptions()
    # What goes wrong is an exception; the runtime's own log writes colours to the terminal.
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not isinstance(model, bytes):
        if not Path(model).is_file():
            raise InputError(f"{model} does not exist or is not a file")
        model = read_bytes(Path(model), MAX_BYTES)
    try:
        # Without its second try, which is the same and prints four lines about the first.
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise InputError(f"ONNX Runtime cannot run the model: {describe(error)}") from None


class OnnxModel:
    """An exported graph as a callable: images in, log mean probabilities out, for `attacks` and `evaluate`.

    Every call of a stochastic graph draws fresh noise, which no generator of squint's controls.

    Args:
        path: file of `export_onnx`, or its bytes.
        optimized: False turns the runtime's graph optimizations off.
        threads: threads of the runtime; None: its own choice.

    Attributes:
        card: the file's model card, plain data.
        num_classes: number of classes.

    Raises:
        squint.InputError: the runtime is missing, or the file is not squint's.
    """

    def __init__(
        self, path: str | Path | bytes, *, optimized: bool = True, threads: int | None = None
    ) -> None:
        self._session = open_session(path, optimized=optimized, threads=threads)
        stored = self._session.get_modelmeta().custom_metadata_map
        if "squint_version" not in stored:
            raise InputError("the model was not written by squint.export_onnx: it has no model card")
        try:
            self.card: dict[str, Any] = {key: json.loads(value) for key, value in stored.items()}
            _check_card(self.card)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"the model's card is damaged: {describe(error)}") from None
        if not self.card["exact_without_vnni"] and saturates():
            warnings.warn(
                "this CPU clips sums of 8-bit products, which the model was not exported for: "
                "its predictions may be off; export it with saturating=True",
                UserWarning,
                stacklevel=2,
            )
        self.num_classes = int(self.card["num_classes"])
        inputs = {each.name: tuple(each.shape) for each in self._session.get_inputs()}
        if inputs.keys() != {"images"} or len(inputs["images"]) < 2:
            raise InputError(f"the model was not written by squint.export_onnx: its inputs are {inputs}")
        self.image_shape = inputs["images"][1:]

    def __call__(self, x: Tensor) -> Tensor:
        """Return log mean probabilities (batch, classes), in the images' dtype and on their device.

        Args:
            x: images (batch, channels, height, width) in [0, 1].
        """
        return torch.from_numpy(self.run(x)[0]).to(x)

    def run(self, x: Tensor) -> list[np.ndarray[Any, Any]]:
        """Return the graph's outputs: log mean probabilities, and the detector's score where it has one."""
        try:
            outputs: list[np.ndarray[Any, Any]] = self._session.run(
                None, {"images": x.detach().cpu().float().contiguous().numpy()}
            )
        except Exception as error:
            # The runtime's errors have no common class; what a graph does is what its file says.
            raise InputError(f"ONNX Runtime cannot run the model: {describe(error)}") from None
        expected = (len(x), self.num_classes)
        if not outputs or not isinstance(outputs[0], np.ndarray) or outputs[0].shape != expected:
            raise InputError(f"the model does not return log probabilities of shape {expected}")
        if outputs[0].dtype != np.float32 or np.isnan(outputs[0]).any():
            raise InputError(
                f"the model returns {outputs[0].dtype} or NaN; needed: float32 log probabilities"
            )
        return outputs


def _check_card(card: dict[str, Any]) -> None:
    """Raise `ValueError`, `KeyError` or `TypeError` where the model card is not one of `export_onnx`."""
    check_number("num_classes", card["num_classes"], 2, whole=True)
    if not isinstance(card["exact_without_vnni"], bool):
        raise TypeError("exact_without_vnni is not true or false")
    names = card.get("class_names")
    if names and (not isinstance(names, list) or len(names) != card["num_classes"]):
        raise ValueError("class_names does not name every class")
    detector = card.get("detector")
    if detector is not None:
        check_number("detector threshold", detector["threshold"], -math.inf)


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: index of the class.
        name: its name, where the model card has names.
        probability: mean probability of the class.
        flagged: whether the detector's score is above its threshold; None where the model has no detector.
    """

    label: int
    name: str | None
    probability: float
    flagged: bool | None


def predict(model: OnnxModel | str | Path, images: Tensor, *, batch_size: int = 64) -> list[Prediction]:
    """Return label, probability and the detector's flag for each of the images.

    Args:
        model: an exported model, or its file.
        images: (n, channels, height, width) in [0, 1], as `read_images` returns them.
        batch_size: images at a time.

    Raises:
        squint.InputError: images are out of range or of a size that the model does not take.
    """
    check_images(images)
    check_number("batch_size", batch_size, 1, whole=True)
    model = model if isinstance(model, OnnxModel) else OnnxModel(model)
    fixed = [(at, size) for at, size in enumerate(model.image_shape) if isinstance(size, int)]
    if images.ndim != len(model.image_shape) + 1 or any(images.shape[at + 1] != size for at, size in fixed):
        raise InputError(f"images have shape {tuple(images.shape[1:])}; the model takes {model.image_shape}")
    names, detector = model.card.get("class_names"), model.card.get("detector")
    found = []
    for part in torch.split(images, batch_size):
        outputs = model.run(part)
        if detector is not None and (len(outputs) < 2 or outputs[1].shape != (len(part),)):
            raise InputError("the model's card has a detector, but the model returns no score for each image")
        flags = [None] * len(part) if detector is None else (outputs[1] > detector["threshold"]).tolist()
        for row, flagged in zip(np.exp(outputs[0]), flags, strict=True):
            label = int(row.argmax())
            found.append(Prediction(label, names[label] if names else None, float(row[label]), flagged))
    return found


def read_images(paths: Sequence[str | Path], channels: int) -> Tensor:
    """Return image files as one batch (n, channels, height, width) in [0, 1].

    Args:
        paths: files of one size.
        channels: 1 (grey) or 3 (colour).

    Raises:
        squint.InputError: no file, one that is no image or has more than 8 bits a channel, or sizes that
            differ.
    """
    if not paths:
        raise InputError("images is empty; allowed: one file or more")
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise InputError(f"the model takes images of {channels} channels; files have 1 or 3")
    batch: list[Tensor] = []
    for path in paths:
        with open_picture(Path(path)) as image:
            try:
                pixels = np.array(image.convert(modes[channels]), dtype=np.float32) / 255
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"{path} cannot be decoded: {describe(error)}") from None
        batch.append(torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1))
        if batch[-1].shape != batch[0].shape:
            raise InputError(
                f"{path} is {tuple(batch[-1].shape[1:])}, others {tuple(batch[0].shape[1:])}: use one size"
            )
    return torch.stack(batch)
