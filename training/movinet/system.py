"""Loss, prediction and cost of a MoViNet on clips and as a stream, and of two at half the frame rate."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from training.backbones.movinet import MoViNet, StreamStep
from training.backbones.movinet_layout import Variant
from training.core.config import DataConfig
from training.core.cost import count_macs, count_params
from training.core.system import ClipBatch, CostRow, Prediction, RawBatch, StepOutput, System, UpdateContext
from training.core.transforms import ClipTransform
from training.core.views import view_scores
from training.layers.streaming import State, state_bytes
from training.movinet.config import NetConfig, StreamConfig


def build_net(model: NetConfig, variant: Variant, num_classes: int) -> MoViNet:
    """Build a stage's net."""
    return MoViNet(
        model.layout(),
        variant,
        num_classes=num_classes,
        dropout=model.dropout,
        drop_path=model.drop_path,
        norm_eps=model.norm_eps,
        norm_momentum=model.norm_momentum,
    )


@dataclass(frozen=True)
class SubclipOutput(StepOutput):
    """Loss of one part of a clip, and the state after it."""

    state: State = field(default_factory=dict)


class MoViNetSystem(System):
    """A MoViNet trained on whole clips; scores are the mean over views of the class probabilities.

    Args:
        model: the net.
        variant: base or stream.
        data: of the stage.
        classes: class names.
        member: of a half-rate ensemble: 0 sees the even frames, 1 the odd ones; None sees all.
    """

    def __init__(
        self,
        model: NetConfig,
        variant: Variant,
        data: DataConfig,
        classes: tuple[str, ...],
        member: int | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.label_smoothing = model.label_smoothing
        self.net = build_net(model, variant, len(classes))
        self._transform = ClipTransform(data.transform)
        self._seen = slice(member, None, 1 if member is None else 2)
        self._num_frames = len(range(data.num_frames)[self._seen])
        self._views = data.eval_views
        self._side = data.transform.eval_side

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        return self._transform(replace(raw, frames_BTHWC=raw.frames_BTHWC[:, self._seen]), train=train)

    @override
    def forward(self, batch: ClipBatch) -> StepOutput:
        return self._output(self.net(batch.video_BCTHW), batch)

    def _output(self, logits_BK: Tensor, batch: ClipBatch) -> StepOutput:
        logits = logits_BK.float()
        loss = F.cross_entropy(logits, batch.label_B, label_smoothing=self.label_smoothing)
        return StepOutput(loss, {"accuracy": (logits.argmax(-1) == batch.label_B).float().mean().detach()})

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        return Prediction(view_scores(self.net, batch.video_BCTHW, self._num_frames).mean(1))

    @override
    def networks(self) -> Iterable[nn.Module]:
        return (self.net,)

    @override
    def undecayed(self) -> Iterable[nn.Parameter]:
        """Weights without L2 beside all scales and biases: the last layer's (§7)."""
        assert self.net.classifier is not None
        weight = self.net.classifier.weight
        return [weight] if isinstance(weight, nn.Parameter) else []

    @override
    def cost(self) -> dict[str, CostRow]:
        return {"main": self._row(self._views)}

    def _row(self, views: int) -> CostRow:
        clip = torch.empty(1, 3, self._num_frames, self._side, self._side, device="meta")
        gmac = views * count_macs(self.net, clip) / 1e9
        shape = f"{views} × {self._num_frames}x3x{self._side}x{self._side}"
        return CostRow("movinet", count_params(self), gmac, shape, "video")


class StreamSystem(MoViNetSystem):
    """A causal MoViNet, trained on whole clips or on parts of them with the state carried on, evaluated as a stream."""

    def __init__(self, config: StreamConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config.model, config.variant.variant(), config.data, classes)
        self.subclips = config.subclips
        self.eval_subclip = config.eval_subclip
        self._step = (StreamStep(self.net),)  # in a tuple: the net is registered once

    @override
    def forward(self, batch: ClipBatch, state: Mapping[str, Tensor] | None = None) -> StepOutput:
        """Return the loss of whole clips, or, with a state, of the next part of each."""
        if state is None:
            return super().forward(batch)
        logits, after = self._step[0](batch.video_BCTHW, state)
        output = self._output(logits, batch)
        return SubclipOutput(output.loss, output.logs, after)

    @override
    def networks(self) -> Iterable[nn.Module]:
        return (self.net, *self._step)

    @override
    def update(self, batch: ClipBatch, ctx: UpdateContext) -> dict[str, Tensor]:
        if self.subclips == 1:
            return super().update(batch, ctx)
        parts = batch.video_BCTHW.tensor_split(self.subclips, dim=2)
        state = self._start(batch.video_BCTHW)
        logs: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            # Gradients of the parts add up; processes exchange them once, with the last part.
            with nullcontext() if number == len(parts) else ctx.partial():
                with ctx.autocast():
                    output: SubclipOutput = ctx.system(replace(batch, video_BCTHW=part), state)
                ctx.backward(output.loss / len(parts))
            state = output.state
            for name, value in {"loss": output.loss.detach(), **output.logs}.items():
                logs[name] = logs.get(name, torch.zeros_like(value)) + value / len(parts)
        return logs

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        scores_BTK = self.running_scores(batch.video_BCTHW)
        # The class after each frame: how soon the stream knows.
        return Prediction(scores_BTK[:, -1], extras={"running_top1": scores_BTK.argmax(-1)})

    @override
    def predict_all(self, batch: ClipBatch) -> Prediction:
        whole = self.net(batch.video_BCTHW).float().softmax(-1)
        return replace(self.predict(batch), arms={"clip": whole})

    def running_scores(self, video_BCTHW: Tensor) -> Tensor:
        """Return the class probabilities after each frame, (B,T,K) fp32, computed call by call."""
        state = self._start(video_BCTHW)
        answers: list[Tensor] = []
        for part in torch.split(video_BCTHW, self.eval_subclip, dim=2):
            logits, state = self.net.stream(part, state, "running")
            answers.append(logits.float().softmax(-1))
        return torch.cat(answers, dim=1)

    def _start(self, video_BCTHW: Tensor) -> State:
        batch, _, _, height, width = video_BCTHW.shape
        return self.net.initial_state(batch, (height, width), device=video_BCTHW.device)

    @override
    def cost(self) -> dict[str, CostRow]:
        row = self._row(1)
        state = self.net.initial_state(1, (self._side, self._side), device="meta")
        return {"main": replace(row, measured={"state_bytes": float(state_bytes(state))}), "clip": row}


class Ensemble(System):
    """Two nets at half the frame rate, one frame apart: the mean of their logits, then softmax (§1.3).

    Paired comparisons: `member0` and `member1` alone, `probabilities` (the mean after softmax), and `aligned` (both on
    the even frames).
    """

    def __init__(self, members: tuple[MoViNetSystem, MoViNetSystem], data: DataConfig) -> None:
        super().__init__()
        self.classes = members[0].classes
        self.members = nn.ModuleList(members)
        self._nets = tuple(member.net for member in members)
        self._transform = ClipTransform(data.transform)
        self._shape = (3, data.num_frames // 2, data.transform.eval_side, data.transform.eval_side)

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        return self._transform(raw, train=train)

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        return Prediction(self._logits(batch, (0, 1)).mean(0).softmax(-1))

    @override
    def predict_all(self, batch: ClipBatch) -> Prediction:
        apart = self._logits(batch, (0, 1))
        second = self._nets[1](batch.video_BCTHW[:, :, 0::2]).float()
        arms = {
            "member0": apart[0].softmax(-1),
            "member1": apart[1].softmax(-1),
            "probabilities": apart.softmax(-1).mean(0),
            "aligned": ((apart[0] + second) / 2).softmax(-1),
        }
        return Prediction(apart.mean(0).softmax(-1), arms=arms)

    def _logits(self, batch: ClipBatch, offsets: tuple[int, int]) -> Tensor:
        """Return the logits of both members, (2,B,K) fp32."""
        video = batch.video_BCTHW
        pairs = zip(self._nets, offsets, strict=True)
        return torch.stack([net(video[:, :, offset::2]).float() for net, offset in pairs])

    @override
    def cost(self) -> dict[str, CostRow]:
        clip = torch.empty(1, *self._shape, device="meta")
        single = [count_macs(net, clip) / 1e9 for net in self._nets]
        channels, frames, height, width = self._shape
        shape = f"{frames}x{channels}x{height}x{width}"
        params = [count_params(member) for member in self.members]
        both = CostRow("movinet_ensemble", sum(params), sum(single), f"2 × {shape}", "video")
        alone = {
            f"member{i}": CostRow("movinet", params[i], single[i], shape, "video") for i in range(len(self.members))
        }
        return {"main": both, **alone, "probabilities": both, "aligned": both}
