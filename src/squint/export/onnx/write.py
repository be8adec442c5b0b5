"""`export_onnx`: plan, emit, check against the ensemble, then write."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint._checks import InputError, InputTypeError, check_choice, check_images, check_labels, check_number
from squint._files import write_bytes
from squint._random import noise
from squint.ensemble import Ensemble, varies
from squint.export.onnx.fold import largest_value, stored_bits
from squint.export.onnx.plan import MemberPlan, Residual, image_channels, plan_ensemble, quantizer_pair
from squint.export.onnx.runtime import need, saturates
from squint.export.parity import Parity, check_parity
from squint.quantize import set_rounding
from squint.quantize.quantizer import ROUNDINGS


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: the file.
        bytes: its size.
        opset: version of the operator set.
        integer: products that the runtime computes in integers.
        floating: quantized products that stay in floats.
        narrowed: products whose 8-bit weights were rounded to 7 bits.
        parity: the comparison with the ensemble; None without images.
    """

    path: Path
    bytes: int
    opset: int
    integer: tuple[str, ...]
    floating: tuple[str, ...]
    narrowed: tuple[str, ...]
    parity: Parity | None


def export_onnx(
    ens: Ensemble,
    path: str | Path,
    rounding: str = "nearest",
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    opset: int | None = None,
    saturating: bool | None = None,
    integer_sums: bool = True,
    max_disagreement: float = 0.02,
    force: bool = False,
    detector_threshold: float | None = None,
    class_names: Sequence[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    robustness: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write the whole ensemble as one ONNX graph and return what was exported.

    The graph takes `images` (batch, channels, height, width) in [0, 1], any batch size, and gives
    `log_probability` (batch, classes), the logarithm of the mean probability over members and draws. Batch
    normalization is folded into the integer weights' scales, which is exact; outputs that a sum or noise
    follows pass through 8-bit codes, the only approximation (and 7-bit weights, see `saturating`).

    Args:
        ens: a calibrated ensemble of networks of `squint.models`, or of `torch.nn.Sequential`; not changed.
        path: file to write.
        rounding: "nearest" (one deterministic pass) or "sample" (`ens.draws` draws of fresh noise).
        images: (n, ...) real images: they set the ranges of 8-bit outputs, fix the image size and pass the
            parity gate. None: ranges from batch normalization's own parameters, and no gate.
        labels: (n,) their labels, for the accuracies in the report.
        opset: None: the oldest that holds the weights' widths.
        saturating: limit 8-bit weights to 7 bits where products could saturate; None: as this CPU needs.
        integer_sums: let residual sums of a deterministic graph pass through 8-bit codes of their measured
            range, which is faster; False keeps them in floats, which is closer to the ensemble.
        max_disagreement: largest share of images whose deterministic prediction may change.
        force: write although the gate fails.
        detector_threshold: adds the output `score` (batch,), the mutual information between prediction and
            member and draw, in nats; predictions above the threshold are to be flagged.
        class_names: names for the model card.
        recipe: the training's configuration, for the model card.
        robustness: the robustness record, with `trusted`, for the model card.

    Raises:
        squint.InputError: before any work: the extra is missing, a layer is not supported, the opset is too
            old; after it: the graph and the ensemble disagree.
    """
    need("onnx")
    check_choice("rounding", rounding, ROUNDINGS)
    check_number("max_disagreement", max_disagreement, 0, 1)
    if not isinstance(ens, Ensemble):
        raise InputTypeError(f"export_onnx needs a squint.Ensemble, got {type(ens).__name__}")
    _check_examples(images, labels)
    twin = copy.deepcopy(ens).cpu().eval()
    set_rounding(twin, rounding)
    plans = plan_ensemble(twin)
    draws = [twin.draws if varies(member) else 1 for member in twin.members]
    opset = _opset(plans, opset, noisy=any(varies(member) for member in twin.members))
    if images is not None:
        need("onnxruntime")
    saturating = saturates() if saturating is None else saturating

    from squint.export.onnx.build import build_model, versions

    with torch.no_grad():
        ranges = {} if images is None else measured_ranges(twin, plans, images, sums=integer_sums)
        built = build_model(
            plans,
            draws,
            opset=opset,
            saturating=saturating,
            ranges=ranges,
            image_shape=_image_shape(plans, images),
            with_score=detector_threshold is not None,
        )
    parity = None
    if images is not None:
        card = {"squint_version": "", "num_classes": built.num_classes, "exact_without_vnni": True}
        parity = check_parity(
            twin,
            built.with_card(card),
            images,
            labels,
            rounding=rounding,
            max_disagreement=max_disagreement,
            force=force,
        )
    content = built.with_card(
        {
            **versions(),
            "rounding": rounding,
            "draws": max(built.draws),
            "members": len(plans),
            "num_classes": built.num_classes,
            "exact_without_vnni": not built.wide,
            "parity": None if parity is None else asdict(parity),
            "class_names": None if class_names is None else list(class_names),
            "detector_threshold": detector_threshold,
            "recipe": None if recipe is None else dict(recipe),
            "robustness": None if robustness is None else dict(robustness),
            "trusted": bool((robustness or {}).get("trusted", False)),
        }
    )
    write_bytes(Path(path), content)
    return ExportReport(
        Path(path), len(content), opset, built.integer, built.floating, built.narrowed, parity
    )


def measured_ranges(
    twin: Ensemble, plans: Sequence[MemberPlan], images: Tensor, *, sums: bool
) -> dict[str, tuple[float, float]]:
    """Return smallest and largest output of every product, and with `sums` of every residual block."""
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str, module: nn.Module, relu: bool) -> Any:
        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            low, high = (float(v) for v in torch.aminmax(output))
            if relu:
                low, high = max(low, 0.0), max(high, 0.0)
            old = ranges.get(name, (low, high))
            ranges[name] = (min(low, old[0]), max(high, old[1]))

        return module.register_forward_hook(keep)

    products = [product for plan in plans for product in plan.products()]
    handles = [watch(p.name, p.layer if p.norm is None else p.norm, p.relu) for p in products]
    blocks = [step for plan in plans for step in plan.steps if isinstance(step, Residual) and sums]
    handles += [watch(block.name, block.block, True) for block in blocks]
    try:
        with noise(torch.Generator().manual_seed(0)):
            for part in torch.split(images.float().cpu(), 256):
                twin.member_logits(part, 1)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _check_examples(images: Tensor | None, labels: Tensor | None) -> None:
    if images is not None:
        check_images(images)
    if labels is not None:
        if images is None:
            raise InputError("labels were given without images; give both, or images alone")
        check_labels(labels, len(images))


def _image_shape(plans: Sequence[MemberPlan], images: Tensor | None) -> list[int | str]:
    if images is not None:
        return list(images.shape[1:])
    channels = image_channels(plans)
    if channels is None:
        first = cast(nn.Linear, next(plans[0].products()).layer)
        return [first.in_features]
    return [channels, "height", "width"]


def _opset(plans: Sequence[MemberPlan], opset: int | None, *, noisy: bool) -> int:
    """Return the opset to use, or raise where the one asked for does not do."""
    import onnx

    from squint.export.onnx.build import NOISY_OPSET, OPSETS

    least = 4 if noisy else 2
    bits, name = 32, ""
    for product in (p for plan in plans for p in plan.products()):
        weight = quantizer_pair(product.layer)[1]
        if weight is not None and stored_bits(largest_value(weight), least) < bits:
            bits, name = stored_bits(largest_value(weight), least), product.name
    if opset is None:
        return OPSETS[bits]
    check_number("opset", opset, OPSETS[32], onnx.defs.onnx_opset_version(), whole=True)
    if opset < OPSETS[bits]:
        raise InputError(
            f"opset is {opset}, too old for {bits}-bit weights ({name}); use opset {OPSETS[bits]} or later"
        )
    if noisy and opset > NOISY_OPSET:
        raise InputError(
            f"opset is {opset}; ONNX Runtime draws noise up to opset {NOISY_OPSET}: use that, "
            "or rounding='nearest'"
        )
    return int(opset)
