"""Losses, updates, predictions and cost of the AdaFocus V1 stages 0, I, II and III."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from training.adafocus.config import AdaFocusConfig, Arm, FinetuneConfig, PolicyConfig, PretrainConfig
from training.adafocus.model import AdaFocus, Glance, frames_of, glance_input
from training.adafocus.policy import discounted_returns, normalise_returns, policy_loss
from training.adafocus.rollout import Rollout, collect
from training.backbones import build_backbone
from training.core.checkpoint import load_state
from training.core.config import DataConfig
from training.core.cost import count_macs, count_params
from training.core.frozen import PartlyFrozen
from training.core.system import ClipBatch, CostRow, Prediction, RawBatch, StepOutput, UpdateContext
from training.core.transforms import ClipTransform
from training.core.weights import load_published, load_weights
from training.layers.patches import center_origins, origins_from_fractions, random_origins
from training.layers.seeded import seeded_uniform

log = logging.getLogger(__name__)

# Streams of the per-clip draws: each use gets its own numbers.
STREAM_TRAIN_PATCH = 11
STREAM_EVAL_PATCH = 12
STREAM_TRAIN_FRAMES = 13


def steps_loss(logits_BTK: Tensor, label_B: Tensor) -> Tensor:
    """Mean cross entropy over all T step logits (stages I and III)."""
    steps = logits_BTK.shape[1]
    return F.cross_entropy(logits_BTK.flatten(0, 1), label_B.repeat_interleave(steps, dim=0))


class _VideoSystem(PartlyFrozen):
    """Shared: the device transform."""

    def __init__(self, data: DataConfig, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        self._transform = ClipTransform(data.transform)
        self._num_frames = data.num_frames

    @override
    def prepare(self, raw: RawBatch, *, train: bool) -> ClipBatch:
        return self._transform(raw, train=train)


class FrameClassifier(_VideoSystem):
    """Stage 0: a CNN on full frames; the video's logit is the mean over frames (§3.1, columns 0a and 0b)."""

    def __init__(self, config: PretrainConfig, classes: tuple[str, ...], root: Path | None) -> None:
        super().__init__(config.data, classes)
        net = config.model.glance if config.net == "glance" else config.model.local
        self.net = config.net
        self.train_frames = config.train_frames
        self.input_size = config.model.glance_size if config.net == "glance" else config.model.size
        self.backbone = build_backbone(net.name, **net.options)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(self.backbone.out_channels, len(classes)))
        self._fixed_norms = net.norms == "fixed"
        if root is not None and net.weights is not None:
            report = load_published(self.backbone, net.weights, root, ignore=("fc.*", "classifier.*"))
            log.info("%s net: %s", self.net, report)

    @override
    def fixed_norms(self) -> Iterable[nn.Module]:
        return (self.backbone,) if self._fixed_norms else ()

    def video_logits(self, video_BCTHW: Tensor) -> Tensor:
        """Return mean frame logits (B,K), fp32."""
        frames = glance_input(frames_of(video_BCTHW), self.input_size)
        return self.head(self.backbone(frames)).float().unflatten(0, (video_BCTHW.shape[0], -1)).mean(1)

    @override
    def forward(self, batch: ClipBatch) -> StepOutput:
        logits = self.video_logits(self._drawn_frames(batch))
        loss = F.cross_entropy(logits, batch.label_B)
        return StepOutput(loss, {"accuracy": (logits.argmax(-1) == batch.label_B).float().mean().detach()})

    def _drawn_frames(self, batch: ClipBatch) -> Tensor:
        """Return `train_frames` random frames per clip, in order of time."""
        video = batch.video_BCTHW
        if self.train_frames == video.shape[2]:
            return video
        draws = seeded_uniform(batch.seed_B, (video.shape[2],), stream=STREAM_TRAIN_FRAMES)
        chosen = draws.argsort(dim=1)[:, : self.train_frames].sort(dim=1).values
        return video.gather(2, chosen[:, None, :, None, None].expand(-1, video.shape[1], -1, *video.shape[3:]))

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        return Prediction(self.video_logits(batch.video_BCTHW).softmax(-1))

    @override
    def cost(self) -> dict[str, CostRow]:
        side = self.input_size
        frame = torch.empty(1, 3, side, side, device="meta")
        macs = self._num_frames * (count_macs(self.backbone, frame) + self.head[1].weight.numel())
        name = f"adafocus_{self.net}"
        row = CostRow(name, count_params(self), macs / 1e9, f"{self._num_frames}x3x{side}x{side}", "video")
        return {"main": row}


class AdaFocusSystem(_VideoSystem):
    """Base of stages I to III: the four networks, greedy inference and cost."""

    def __init__(self, model: AdaFocusConfig, data: DataConfig, classes: tuple[str, ...]) -> None:
        super().__init__(data, classes)
        self.net = AdaFocus(model, len(classes))

    def load_upstream(self, folder: Path) -> None:
        """Load all four networks from the previous stage's model, strictly."""
        state = load_state(folder)
        load_weights(self.net, {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})

    def local_nets(self) -> Iterable[nn.Module]:
        """Return f_L, and every copy of it that this stage trains."""
        return (self.net.local,)

    @override
    def fixed_norms(self) -> Iterable[nn.Module]:
        return self.local_nets() if self.net.config.local.norms == "fixed" else ()

    def look(self, batch: ClipBatch) -> Glance:
        """Run the frozen f_G; no graph."""
        with torch.no_grad():
            return self.net.look(batch.video_BCTHW)

    def arm_origins(self, arm: Arm, batch: ClipBatch, glance: Glance, stream: int) -> Tensor:
        """Return one patch origin per frame (B,T,2) as an arm chooses it."""
        config = self.net.config
        batch_size, steps = glance.vector_BTC.shape[:2]
        shape = (batch_size, steps)
        if arm == "policy":
            with torch.no_grad():
                return self.net.greedy_origins(glance)
        if arm == "random":
            return random_origins(shape, config.size, config.patch, seed_B=batch.seed_B, stream=stream)
        if arm == "center":
            return center_origins(shape, config.size, config.patch, device=batch.seed_B.device)
        # Gaussian around the centre, σ = 0.25 of the free range, by Box-Muller from the clip's own draws.
        draws = seeded_uniform(batch.seed_B, (steps, 2, 2), stream=stream)
        radius = (-2 * torch.log1p(-draws[..., 0])).sqrt()
        normal = radius * torch.cos(2 * torch.pi * draws[..., 1])
        return origins_from_fractions(0.5 + 0.25 * normal, config.size, config.patch)

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        logits, origins = self.net(batch.video_BCTHW)
        return Prediction(logits[:, -1].softmax(-1), extras=self.trace(logits, origins))

    def trace(self, logits_BTK: Tensor, origin_BT2: Tensor) -> dict[str, Tensor]:
        """Return what the report shows: patch origins, patch side and the confidence after each frame."""
        batch = logits_BTK.shape[0]
        side = torch.full((batch,), self.net.config.patch, dtype=torch.int16, device=logits_BTK.device)
        confidence = logits_BTK.softmax(-1).amax(-1)
        return {"origins": origin_BT2.to(torch.int16), "patch": side, "confidence": confidence}

    @override
    def cost(self) -> dict[str, CostRow]:
        return {"main": self.cost_row(self.net.gmac_parts())}

    def cost_row(self, parts: dict[str, float], *, policy: bool = True) -> CostRow:
        """Return the cost per video; without π for arms that do not ask it."""
        config = self.net.config
        gmac = sum(value for name, value in parts.items() if policy or name != "policy")
        params = self.net.num_params() - (0 if policy else count_params(self.net.policy))
        shape = f"{config.num_frames}x3x{config.size}x{config.size}, patch {config.patch}"
        return CostRow("adafocus_v1" if policy else "adafocus_v1_no_policy", params, gmac, shape, "video")


class Warmup(AdaFocusSystem):
    """Stage I: f_L and f_C learn on a new uniform random patch per frame; f_G is frozen."""

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.net.glance, self.net.policy)

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"local": list(self.net.local.parameters()), "classifier": list(self.net.classifier.parameters())}

    def load_pretrained(self, glance: Path, local: Path) -> None:
        """Take both CNNs from stage 0; their heads are dropped."""
        for name, folder in (("glance", glance), ("local", local)):
            state = {k.removeprefix("backbone."): v for k, v in load_state(folder).items() if k.startswith("backbone.")}
            load_weights(getattr(self.net, name), state)

    def logits(self, batch: ClipBatch, stream: int) -> tuple[Tensor, Tensor]:
        """Return step logits (B,T,K) on random patches, and their origins."""
        glance = self.look(batch)
        origins = self.arm_origins("random", batch, glance, stream)
        logits, _ = self.net.classifier(self.net.fuse(glance, self.net.patch_features(batch.video_BCTHW, origins)))
        return logits, origins

    @override
    def forward(self, batch: ClipBatch) -> StepOutput:
        logits, _ = self.logits(batch, STREAM_TRAIN_PATCH)
        return StepOutput(steps_loss(logits, batch.label_B), _accuracy(logits, batch))

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        logits, origins = self.logits(batch, STREAM_EVAL_PATCH)  # π is untrained: random patches, as in training
        return Prediction(logits[:, -1].softmax(-1), extras=self.trace(logits, origins))


class PatchPolicy(AdaFocusSystem):
    """Stage II: π alone, rewarded by the confidence that its patch adds over a random one (§3.2, §3.3)."""

    objective = ("reward", "max")

    def __init__(self, config: PolicyConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config.model, config.data, classes)
        self.policy_config = config
        self.owns_step = config.passes > 1

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.net.glance, self.net.local, self.net.classifier)

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"policy": list(self.net.policy.parameters())}

    @override
    def forward(self, batch: ClipBatch, rollout: Rollout | None = None) -> StepOutput:
        """Loss of one pass; without a roll-out this pass also collects it (K = 1: one forward of π in all)."""
        config = self.policy_config
        glance = self.look(batch) if rollout is None else rollout.glance
        output, _ = self.net.policy(glance.maps_BTChw)
        if rollout is None:
            rollout = collect(self.net, config, batch, glance, output.logits_BTA.detach())
        target = normalise_returns(discounted_returns(rollout.reward_BT, config.discount))
        terms = policy_loss(
            output,
            rollout.action_BT,
            rollout.log_prob_BT if config.passes > 1 else None,
            target,
            clip=config.clip,
            entropy_weight=config.entropy_weight,
            value_weight=config.value_weight,
        )
        logs = {name: value for name, value in terms._asdict().items() if name != "loss"}
        logs["reward"] = rollout.reward_BT.mean()
        logs["confidence"] = rollout.confidence_BT.mean()
        return StepOutput(terms.loss, logs)

    @override
    def update(self, batch: ClipBatch, ctx: UpdateContext) -> dict[str, Tensor]:
        if self.policy_config.passes == 1:
            return super().update(batch, ctx)
        with ctx.autocast(), torch.no_grad():
            glance = self.look(batch)
            output, _ = self.net.policy(glance.maps_BTChw)
            rollout = collect(self.net, self.policy_config, batch, glance, output.logits_BTA)
        for _ in range(self.policy_config.passes):
            with ctx.autocast():
                result: StepOutput = ctx.system(batch, rollout)
            ctx.backward(result.loss)
            logs = ctx.step()
        return {"loss": result.loss.detach(), **result.logs, **logs}


class ArmNets(nn.Module):
    """What a comparison arm owns: its own f_C, and f_L where stage III trains it."""

    def __init__(self, classifier: nn.Module, local: nn.Module | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.local = local


class Finetune(AdaFocusSystem):
    """Stage III: every arm's f_C (and f_L) on its own patches; same start, same batches, same budget."""

    MAIN: ClassVar[Arm] = "policy"

    def __init__(self, config: FinetuneConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config.model, config.data, classes)
        self.trains_local = config.train == "local_and_classifier"
        self.others = nn.ModuleDict(
            {
                arm: ArmNets(
                    self.net.new_classifier(),
                    build_backbone(config.model.local.name, **config.model.local.options)
                    if self.trains_local
                    else None,
                )
                for arm in config.arms
                if arm != self.MAIN
            }
        )

    @override
    def load_upstream(self, folder: Path) -> None:
        super().load_upstream(folder)
        for arm in self.others.values():
            arm.classifier.load_state_dict(self.net.classifier.state_dict())
            if arm.local is not None:
                arm.local.load_state_dict(self.net.local.state_dict())

    @override
    def frozen(self) -> Iterable[nn.Module]:
        yield self.net.glance
        yield self.net.policy
        if not self.trains_local:
            yield self.net.local

    @override
    def local_nets(self) -> Iterable[nn.Module]:
        return (self.net.local, *(arm.local for arm in self.others.values() if arm.local is not None))

    @override
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        arms = list(self.others.values())
        groups = {"classifier": [p for net in (self.net, *arms) for p in net.classifier.parameters()]}
        if self.trains_local:
            groups["local"] = [p for net in (self.net, *arms) for p in net.local.parameters()]
        return groups

    def arm_logits(self, arm: str, batch: ClipBatch, glance: Glance, stream: int) -> tuple[Tensor, Tensor]:
        """Return an arm's step logits (B,T,K) and patch origins."""
        nets = self.net if arm == self.MAIN else self.others[arm]
        origins = self.arm_origins(arm, batch, glance, stream)  # type: ignore[arg-type]
        with torch.set_grad_enabled(self.trains_local and torch.is_grad_enabled()):
            local = self.net.patch_features(batch.video_BCTHW, origins, nets.local)
        logits, _ = nets.classifier(self.net.fuse(glance, local))
        return logits, origins

    @override
    def forward(self, batch: ClipBatch) -> StepOutput:
        glance = self.look(batch)
        losses, logs = [], {}
        for arm in (self.MAIN, *self.others):
            logits, _ = self.arm_logits(arm, batch, glance, STREAM_TRAIN_PATCH)
            # A sum, not a mean: the arms share no trained parameter, so each sees the gradient of its own loss.
            losses.append(steps_loss(logits, batch.label_B))
            logs[f"loss_{arm}"] = losses[-1].detach()
        return StepOutput(torch.stack(losses).sum(), logs)

    @override
    def predict_all(self, batch: ClipBatch) -> Prediction:
        glance = self.look(batch)
        logits, origins = self.arm_logits(self.MAIN, batch, glance, STREAM_EVAL_PATCH)
        arms = {
            arm: self.arm_logits(arm, batch, glance, STREAM_EVAL_PATCH)[0][:, -1].softmax(-1) for arm in self.others
        }
        return Prediction(logits[:, -1].softmax(-1), arms, self.trace(logits, origins))

    @override
    def cost(self) -> dict[str, CostRow]:
        parts = self.net.gmac_parts()
        return {"main": self.cost_row(parts), **{arm: self.cost_row(parts, policy=False) for arm in self.others}}


class Evaluation(_VideoSystem):
    """The fine-tuned model and its arms, and both stage-0 CNNs on full frames, in one pass over the split."""

    def __init__(self, finetuned: Finetune, fullframe: FrameClassifier, glance: FrameClassifier, data: DataConfig):
        super().__init__(data, finetuned.classes)
        self.finetuned = finetuned
        self.frame_nets = nn.ModuleDict({"fullframe": fullframe, "glance": glance})

    @override
    def predict(self, batch: ClipBatch) -> Prediction:
        return self.finetuned.predict(batch)

    @override
    def predict_all(self, batch: ClipBatch) -> Prediction:
        result = self.finetuned.predict_all(batch)
        frames = {name: net.predict(batch).scores_BK for name, net in self.frame_nets.items()}
        return Prediction(result.scores_BK, {**result.arms, **frames}, result.extras)

    @override
    def cost(self) -> dict[str, CostRow]:
        return {**self.finetuned.cost(), **{name: net.cost()["main"] for name, net in self.frame_nets.items()}}


def _accuracy(logits_BTK: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
    return {"accuracy": (logits_BTK[:, -1].argmax(-1) == batch.label_B).float().mean().detach()}
