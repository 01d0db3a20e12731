"""Dynamic quantization of an exported network: weights as 8-bit integers, and what that costs."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcmt.onnx.runtime import Run
from dcmt.trained.loaded import LoadedRun, load_data, refuse_trained_images
from knee.errors import UserError
from knee.grades import decide
from knee.metrics import quadratic_kappa

log = logging.getLogger(__name__)
_OPERATORS = ["Conv", "Gemm", "MatMul"]


def quantized(content: bytes) -> bytes:
    """The file with the weights of convolutions and matrix products as 8-bit integers, scaled by tensor.

    Activations are quantized by the range that they have in each call. Metadata are kept.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load_model_from_string(content)
    # An operator of a module has the module in its name; distances and attention are computed outside of all, as before.
    kept = [node.name for node in model.graph.node if "/" not in node.name.strip("/")]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    root = logging.getLogger()
    level = root.level
    with TemporaryDirectory(prefix="dcmt_") as folder:
        path = Path(folder) / "int8.onnx"
        try:
            root.setLevel(logging.ERROR)  # it advises a step that would change the checked graph
            # ONNX Runtime multiplies convolutions by unsigned weights only.
            quantize_dynamic(
                model, path, op_types_to_quantize=_OPERATORS, nodes_to_exclude=kept, weight_type=QuantType.QUInt8
            )
        finally:
            root.setLevel(level)
        found = onnx.load_model(path)
    onnx.helper.set_model_props(found, properties)
    return bytes(found.SerializeToString())


def probability_difference(before: Run, after: Run, batches: list[Tensor]) -> float:
    """The largest difference of the first output, for batches of prepared images (B, 1, S, S)."""
    found = [np.abs(before(images.numpy())[0] - after(images.numpy())[0]).max() for images in batches]
    return float(max(found))


def cost_on(loaded: LoadedRun, split: str, before: Run, after: Run) -> str:
    """What the quantized file costs on the graded images of a split. Raises UserError if there are none."""
    refuse_trained_images(loaded.run.path, loaded.kind, split, allowed=False)
    data = load_data(loaded)
    rows = data.rows(split)
    rows = rows[data.grades[rows] >= 0]
    if not len(rows):
        raise UserError(f"the split has no graded {split} images; measure the cost on another")
    pairs: list[tuple[NDArray[np.float32], ...]] = [
        tuple(run(images.numpy())[0] for run in (before, after)) for images, _ in data.loader(rows)
    ]
    exact, int8 = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    grades, called = data.grades[rows], [decide(found, data.grade_set.decision) for found in (exact, int8)]
    kappas = [quadratic_kappa(grades, found) for found in called]
    changed = float((called[0] != called[1]).mean())
    return (
        f"{len(rows)} graded {split} images: kappa {kappas[0]:.3f} in float32, {kappas[1]:.3f} in int8 "
        f"({kappas[1] - kappas[0]:+.3f}); {changed:.1%} get another grade; largest difference of a probability "
        f"{float(np.abs(exact - int8).max()):.3f}"
    )
