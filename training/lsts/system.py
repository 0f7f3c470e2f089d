"""Losses, inference and cost of the LSTS stages."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from training.core.box_metrics import box_metrics
from training.core.box_results import BoxResults, Found
from training.core.config import DataConfig, OptimConfig
from training.core.cost import count_params
from training.core.detections import Detections, FrameBatch, VideoAnswer, VideoRunner
from training.core.evaluate import Predictions
from training.core.evaluate_frames import class_scores
from training.core.frame_transform import FrameTransform
from training.core.frozen import PartlyFrozen
from training.core.seq_nms import seq_nms
from training.core.system import ClipBatch, CostRow, FrameBoxes, Prediction, RawBatch, StepOutput
from training.lsts.config import BatchNorm, EvalConfig, LSTSConfig, MethodConfig
from training.lsts.cost import FrameCosts, frame_costs
from training.lsts.heads import Targets
from training.lsts.model import LSTS, displacements
from training.lsts.offsets import initial_offsets
from training.lsts.runner import LSTSRunner
from training.lsts.schedule import blocks_of

__all__ = ["SINGLE", "Evaluation", "LSTSSystem"]

log = logging.getLogger(__name__)

SINGLE = MethodConfig(interval=1, schedule="offline", key="plain", non_key="hold", alignment="sampled")
"""The single-frame detector."""

REFERENCE_FRAMES = 60
"""Length of the video for which `cost` gives the average frame's cost."""


Prepare = Callable[[RawBatch], FrameBatch]


class LSTSSystem(PartlyFrozen):
    """A detector and the method by which its features travel; with `SINGLE`, the single-frame detector."""

    def __init__(
        self,
        model: LSTSConfig,
        method: MethodConfig,
        data: DataConfig,
        batch_norm: BatchNorm,
        classes: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.classes = classes
        self.data = data
        self.transform = FrameTransform(data.transform)
        self._costs: dict[tuple[int, int, int], FrameCosts] = {}
        self.model = LSTS(model, method, len(classes))
        self.method = method
        self._batch_norm = batch_norm

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> FrameBatch:
        return self.transform(raw, train=train)

    # --- training ------------------------------------------------------------------------------

    @override
    def forward(self, batch: FrameBatch) -> StepOutput:  # type: ignore[override]
        assert batch.boxes is not None
        image_BT3HW = batch.video_BCTHW.transpose(1, 2)
        steps = self._displacements(batch) if self.method.alignment == "truth" else None
        features = self.model.forward_example(image_BT3HW, batch.number_BT, steps)
        maps = self.model.head(features)
        losses = self.model.head.losses(maps, _targets(batch.boxes), batch.size_B2, batch.seed_B)
        total = losses.pop("loss")
        return StepOutput(total, {name: value.detach() for name, value in losses.items()})

    def _displacements(self, batch: FrameBatch) -> Tensor:
        """Return, per step from each frame but the first to the one before, how far each cell's object moved."""
        boxes = batch.boxes
        assert boxes is not None
        cells = self.model.backbone.feature_size(*batch.video_BCTHW.shape[-2:])
        stride = self.model.config.backbone.stride
        box, track = boxes.box_BTN4, boxes.track_BTN
        steps = [
            displacements(box[:, t], track[:, t], box[:, t - 1], track[:, t - 1], cells, stride)
            for t in range(1, track.shape[1])
        ]
        return torch.stack(steps, dim=1)

    @override
    def on_step(self, step: int, steps: int) -> None:
        if self.model.offsets is not None:
            self.model.offsets.clamp_()

    @override
    def export_state(self) -> dict[str, Tensor]:
        if self.model.offsets is not None:
            self.model.offsets.clamp_()
        return super().export_state()

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.model.groups()

    @override
    def optim_configs(self, config: OptimConfig) -> dict[str, OptimConfig]:
        # One list of rates serves all methods; those of parts that a method does not have are left out.
        groups = self.parameter_groups()
        known = {"backbone", "head", "alignment", "offsets"}
        rates = {name: rate for name, rate in config.lr.items() if name in groups or name not in known}
        return {"main": config.model_copy(update={"lr": rates})}

    @override
    def undecayed(self) -> Iterable[nn.Parameter]:
        return () if self.model.offsets is None else self.model.offsets.parameters()

    @override
    def fixed_norms(self) -> Iterable[nn.Module]:
        return (self.model.backbone,) if self._batch_norm == "frozen" else ()

    train_backbone: bool = True

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return self.model.backbone.frozen() if self.train_backbone else (self.model.backbone,)

    @override
    def networks(self) -> Iterable[nn.Module]:
        return self.model.compilable()

    # --- inference -----------------------------------------------------------------------------

    def runner(self, model: LSTS, method: MethodConfig, prepare: Prepare | None = None) -> LSTSRunner:
        """Return what goes through a video with a model by a method; `prepare` stands in for the transform."""
        transform = prepare or (lambda raw: self.transform(raw, train=False))
        return LSTSRunner(model, method, transform, lambda *size: self.frame_costs(model, *size))

    def frame_costs(self, model: LSTS, height: int, width: int) -> FrameCosts:
        """Return what frames of a size cost; counted once per size."""
        place = (id(model), height, width)
        if place not in self._costs:
            self._costs[place] = frame_costs(model, height, width)
        return self._costs[place]

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        """Return the largest score of each class in videos that were prepared whole."""
        assert isinstance(batch, FrameBatch)
        answers = [self._watch(batch, row) for row in range(len(batch.key))]
        scores = np.stack([class_scores(answer.detections, len(self.classes)) for answer in answers])
        device = batch.video_BCTHW.device
        gmac = torch.tensor([answer.gmac for answer in answers], device=device)
        return Prediction(torch.from_numpy(scores).to(device), extras={"gmac": gmac})

    def _watch(self, batch: FrameBatch, row: int) -> VideoAnswer:
        """Go through one video of a batch that was prepared, whose frames follow one another."""
        model, method = self.main()
        rows = slice(row, row + 1)
        count = batch.number_BT.shape[1]
        device = batch.video_BCTHW.device
        pixels = torch.zeros((1, count, 1, 1, 3), dtype=torch.uint8, device=device)
        if method.scene_cut is not None:
            pixels = self.transform.to_pixels(batch.video_BCTHW[rows])
        raw = RawBatch(
            frames_BTHWC=pixels,
            size_B2=batch.size_B2[rows].long(),
            label_B=batch.label_B[rows],
            key=batch.key[rows],
            seed_B=batch.seed_B[rows],
            valid_B=batch.valid_B[rows],
            # Counted from 0: it is how the runner's requests are answered below.
            number_BT=torch.arange(count, device=device)[None],
            boxes=None if batch.boxes is None else batch.boxes[rows],
            sizes=batch.sizes[rows],
        )

        def prepared(part: RawBatch) -> FrameBatch:
            assert part.number_BT is not None
            chosen = part.number_BT[0]
            return replace(
                batch.row(row),
                video_BCTHW=batch.video_BCTHW[rows, :, chosen],
                number_BT=batch.number_BT[rows, chosen],
                boxes=part.boxes,
            )

        runner = self.runner(model, method, prepared)
        runner.push(raw)
        return runner.finish()

    def main(self) -> tuple[LSTS, MethodConfig]:
        """Return the networks that answer, and how."""
        return self.model, self.method

    @override
    def video_runners(self, *, arms: bool) -> dict[str, VideoRunner]:
        return {"main": self.runner(*self.main())}

    @override
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return offset_figures(self.model)

    @override
    def tables(self) -> dict[str, NDArray[np.float32]]:
        """Return the offsets (K,2), x and y in cells, before and after training, where the method has some."""
        offsets = self.model.offsets
        if offsets is None:
            return {}
        config = self.method.offsets or self.model.config.alignment.offsets
        return {
            "offsets": offsets.table.detach().float().cpu().numpy(),
            "offsets_initial": initial_offsets(config).numpy(),
        }

    @override
    def cost(self) -> dict[str, CostRow]:
        return {"main": self.row("lsts", self.model, self.method)}

    def row(self, name: str, model: LSTS, method: MethodConfig) -> CostRow:
        """Return the cost of an average frame of a video of `REFERENCE_FRAMES` frames at full size."""
        transform = self.data.transform
        height, width = transform.eval_side, transform.long_side or transform.eval_side
        gmac = average_gmac(self.frame_costs(model, height, width), method, REFERENCE_FRAMES)
        return CostRow(name, count_params(model), gmac, f"3x{height}x{width}", "frame")


class Evaluation(LSTSSystem):
    """A trained method, beside the single-frame detector and other settings of the same networks."""

    def __init__(
        self, config: EvalConfig, trained: LSTSSystem, single: LSTSSystem | None, classes: tuple[str, ...]
    ) -> None:
        super().__init__(config.model, trained.method, config.data, "frozen", classes)
        self.model = trained.model
        self.config = config
        self.single = None if single is None else single.model

    @override
    def metrics(self, predictions: Predictions) -> dict[str, float]:
        figures = super().metrics(predictions)
        if self.config.seq_nms:
            figures |= {f"{key}_seq": value for key, value in rescored(predictions).items()}
        return figures

    def arms(self) -> dict[str, tuple[LSTS, MethodConfig]]:
        """Return networks and settings of the comparison models."""
        arms = {name: (self.model, method) for name, method in self.config.variants.items()}
        return arms if self.single is None else {"single": (self.single, SINGLE), **arms}

    @override
    def video_runners(self, *, arms: bool) -> dict[str, VideoRunner]:
        others = self.arms() if arms else {}
        runners = {"main": self.main(), **others}
        return {name: self.runner(model, method) for name, (model, method) in runners.items()}

    @override
    def cost(self) -> dict[str, CostRow]:
        rows = {"main": self.row("lsts", self.model, self.method)}
        return rows | {name: self.row(f"lsts_{name}", model, method) for name, (model, method) in self.arms().items()}


def rescored(predictions: Predictions) -> dict[str, float]:
    """Return `map50` and `map50_lenient` after Seq-NMS of what the main model found in each video (§9)."""
    assert predictions.boxes is not None
    found = predictions.boxes.found["main"]
    videos = [seq_nms(found.boxes[found.video_N == number]) for number in range(len(predictions.key))]
    number_N = np.repeat(np.arange(len(videos)), [len(boxes) for boxes in videos])
    columns = ("frame_N", "box_N4", "score_N", "label_N")
    joined = Detections(*(np.concatenate([getattr(boxes, name) for boxes in videos]) for name in columns))
    results = BoxResults(predictions.boxes.truth, {"main": Found(number_N, joined)})
    figures = box_metrics(results, predictions.classes, "seq")
    return {name: figures[f"seq/{name}"] for name in ("map50", "map50_lenient")}


def average_gmac(costs: FrameCosts, method: MethodConfig, num_frames: int) -> float:
    """Return GMAC per frame of a video without cuts."""
    total = 0.0
    for block in blocks_of(num_frames, method.interval, method.schedule):
        fused = method.key == "srfu" and not block.first
        total += costs.key if fused else costs.first
        if method.non_key == "dfa":
            total += costs.prepare + costs.other * (block.length - 1)
    return total / num_frames


def offset_figures(model: LSTS) -> dict[str, float]:
    """Return where the alignment looks: mean |x| and |y| of the offsets, and the largest of both, cells."""
    return {} if model.offsets is None else {f"offsets_{k}": float(v) for k, v in model.offsets.statistics().items()}


def _targets(boxes: FrameBoxes) -> Targets:
    """Return what the last frame of each example shows."""
    return Targets(boxes.box_BTN4[:, -1], boxes.label_BTN[:, -1], boxes.labelled_BT[:, -1].float())


def load_weights(system: LSTSSystem, root: Path) -> None:
    """Start the backbone from published weights, where the config names some."""
    if (said := system.model.load_weights(root)) is not None:
        log.info("backbone: %s", said)
