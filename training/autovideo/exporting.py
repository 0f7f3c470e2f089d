"""Writing the network of a model for other programs, and checking that the file computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_specs.files import sha256_of
from training.core.checkpoint import LoadedModel
from training.core.config import ConfigError
from training.core.system import ClipBatch
from training.core.transforms import MEAN_STD

FORMAT = 1
CHECKED = (1, 2, 5)
"""Batch sizes that a file with a free batch size is checked with."""


class ExportError(RuntimeError):
    """A file that was written does not compute what the network does."""


def network_of(model: LoadedModel, where: str) -> tuple[nn.Module, tuple[int, int, int, int]]:
    """Return the one network of a model and the shape C, T, H, W of a view.

    Raises:
        ConfigError: the system has no network of its own, or several, or it looks at something other than RGB clips.
    """
    networks = list(model.system.networks())
    if len(networks) != 1:
        raise ConfigError(
            f"{where}: a model of stage {model.stage} has {len(networks)} networks from tensors to tensors, and what "
            "joins them is no network; only systems with exactly one can be exported"
        )
    data = model.data_config()
    if data.sampling == "frames" or data.sound is not None or data.flow or data.pictures != "stacks" or data.stack > 1:
        raise ConfigError(
            f"{where}: a model of stage {model.stage} looks at more than RGB clips; it cannot be exported"
        )
    side = data.transform.eval_side
    return networks[0], (3, data.num_frames, side, side)


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax of each view's logits, then the mean over the views of a video": lambda logits_VK: logits_VK.softmax(
        -1
    ).mean(0),
    "mean of the logits over the views of a video, then softmax": lambda logits_VK: logits_VK.mean(0).softmax(-1),
    "sigmoid of each view's logits, then the mean over the views of a video": lambda logits_VK: (
        logits_VK.sigmoid().mean(0)
    ),
}
"""How scores come from logits (V,K)."""


def score_rule(model: LoadedModel, where: str) -> str:
    """Return in words how the system makes scores of its network's logits: what its `predict` was seen to do.

    Raises:
        ConfigError: none of `RULES`; the network alone would then give other scores than the model.
    """
    network, (channels, frames, height, width) = network_of(model, where)
    views = model.data_config().eval_views
    video_VCTHW = torch.randn((views, channels, frames, height, width), generator=torch.Generator().manual_seed(1))
    one = torch.zeros(1, dtype=torch.int64)
    batch = ClipBatch(
        video_BCTHW=video_VCTHW.transpose(0, 1).flatten(1, 2)[None],
        label_B=one,
        key=("check",),
        seed_B=one,
        valid_B=torch.ones(1, dtype=torch.bool),
        box_B4=torch.tensor([[0.0, 0.0, height, width]]),
        flip_B=torch.zeros(1, dtype=torch.bool),
    )
    with torch.inference_mode():
        wanted, logits_VK = model.system.predict(batch).scores_BK[0], network(video_VCTHW).float()
    for words, rule in RULES.items():
        if torch.allclose(rule(logits_VK), wanted, atol=1e-5):
            return words
    raise ConfigError(
        f"{where}: a model of stage {model.stage} makes its scores in a way of its own from what its network returns; "
        "the network alone would give other ones, so it is not exported"
    )


def preprocessing(model: LoadedModel, where: str) -> dict[str, Any]:
    """Return all that has to be done before and after the network, as plain values.

    Raises:
        ConfigError: see `score_rule`.
    """
    data = model.data_config()
    transform = data.transform
    mean, std = MEAN_STD[transform.normalise]
    side = transform.eval_side
    return {
        "format": FORMAT,
        "layout": "NCTHW",
        "channels": "RGB",
        "dtype": "float32",
        "view": {"frames": data.num_frames, "height": side, "width": side},
        "sampling": data.sampling,
        "stride": data.stride,
        "centre": data.centre,
        "overrun": data.overrun,
        "short_side": transform.eval_short_side,
        "crop": side,
        "crops_per_clip": transform.eval_crops,
        "clips_per_video": data.eval_clips,
        "scale": "uint8 / 255, then (x - mean) / std",
        "mean": list(mean),
        "std": list(std),
        "output": "logits of shape (N, classes)",
        "scores": score_rule(model, where),
        "decoder": model.decoder,
    }


def examples(shape: tuple[int, int, int, int], batch: int | None) -> list[Tensor]:
    """Return inputs for the check, the same each time; the first is the one to export with."""
    generator = torch.Generator().manual_seed(0)
    # torch.export takes a batch of 1 for a constant, so the first is of 2.
    sizes = (batch,) if batch is not None else (2, *(size for size in CHECKED if size != 2))
    return [torch.randn((size, *shape), generator=generator) for size in sizes]


def check_equal(run: Callable[[Tensor], Tensor], network: nn.Module, inputs: list[Tensor], tolerance: float) -> float:
    """Return the largest difference between two networks' outputs, over the largest output.

    Raises:
        ExportError: it is above the tolerance, or not a number.
    """
    worst = 0.0
    with torch.inference_mode():
        for video_BCTHW in inputs:
            wanted, got = network(video_BCTHW), run(video_BCTHW)
            if got.shape != wanted.shape:
                raise ExportError(f"the file returns {tuple(got.shape)}, the network {tuple(wanted.shape)}")
            difference = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
            if not difference <= tolerance:
                raise ExportError(
                    f"outputs of file and network differ by {difference:.2e} of the largest one at a batch of "
                    f"{len(video_BCTHW)}; {tolerance:.0e} is allowed"
                )
            worst = max(worst, difference)
    return worst


def _traced(
    model: LoadedModel, batch: int | None, where: str
) -> tuple[nn.Module, "torch.export.ExportedProgram", list[Tensor]]:
    network, shape = network_of(model, where)
    network = network.cpu().float().eval()
    inputs = examples(shape, batch)
    try:
        with torch.inference_mode():
            output = network(inputs[0])
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: the network does not take views of the shape {shape}: {error}") from error
    if not isinstance(output, Tensor) or output.shape != (len(inputs[0]), len(model.classes)):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"{where}: the network returns {got} instead of logits (N, {len(model.classes)})")
    free = None if batch is not None else ({0: torch.export.Dim("batch", min=1)},)
    try:
        program = torch.export.export(network, (inputs[0],), dynamic_shapes=free)
    except Exception as error:  # torch has many kinds, and no common one
        hint = "" if batch is not None else "; with `batch: 1` its size is a constant, which may be what it needs"
        line = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"{where}: torch.export refuses the network: {type(error).__name__}: {line}{hint}") from error
    return network, program, inputs


def _facts(path: Path, inputs: list[Tensor], difference: float) -> dict[str, Any]:
    return {
        "file": path.name,
        "sha256": sha256_of(path),
        "checked_batches": [len(video) for video in inputs],
        "largest_difference": difference,
    }


def export_torch(model: LoadedModel, path: Path, *, batch: int | None, tolerance: float, where: str) -> dict[str, Any]:
    """Write a network as `.pt2`, read it back and compare.

    Raises:
        ConfigError: see `network_of`; or torch.export refuses the network.
        ExportError: see `check_equal`.
    """
    network, program, inputs = _traced(model, batch, where)
    torch.export.save(program, path)
    return _facts(path, inputs, check_equal(torch.export.load(path).module(), network, inputs, tolerance))


def export_onnx(
    model: LoadedModel, path: Path, *, batch: int | None, tolerance: float, opset: int, where: str
) -> dict[str, Any]:
    """Write a network as `.onnx` with its weights inside, run it with onnxruntime and compare.

    Raises:
        ConfigError: see `export_torch`.
        ExportError: see `check_equal`.
    """
    import onnxruntime  # type: ignore[import-not-found]

    network, program, inputs = _traced(model, batch, where)
    torch.onnx.export(program, (inputs[0],), str(path), opset_version=opset, dynamo=True, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(video_BCTHW: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: video_BCTHW.numpy()})[0])

    return _facts(path, inputs, check_equal(run, network, inputs, tolerance)) | {"opset": opset}
