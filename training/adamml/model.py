"""AdaMML: a policy chooses modalities per segment, sub-networks run where chosen, scores are fused late.

Architecture and inference only. Suffixes: B videos, S segments, K modalities, C classes, J width of the joint feature;
in the last axis of logits 0 means skip and 1 use.

Inference decides first, for all segments of a batch at once, and then runs each sub-network once, on the rows that were
chosen for it. What was not chosen is never an input of anything.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from training.adamml.config import AdaMMLConfig, Modality
from training.adamml.inputs import policy_view
from training.adamml.networks import SegmentNet, channels_of
from training.adamml.policy import JointPolicy, PolicyState
from training.layers.gumbel import decide, gumbel_noise

Inputs = Mapping[str, Tensor]
"""Modality → (B,S,T,C,H,W)."""

Select = Callable[[Modality, Tensor], Tensor]
"""Gives the inputs (n,T,C,H,W) of a modality for some rows (n,) of all B·S segments."""

Mode = Literal["argmax", "sample", "threshold"]


class Decision(NamedTuple):
    """What the policy says of each segment."""

    logits_BSK2: Tensor
    used_BSK: Tensor
    """bool."""


class Answer(NamedTuple):
    """Result of an inference that skips."""

    score_BC: Tensor
    """Fused class scores before the softmax, fp32."""
    used_BSK: Tensor
    """bool."""
    logits_BSK2: Tensor
    rows: tuple[int, ...]
    """Segments on which each sub-network was run."""


class OnlineState(NamedTuple):
    """What is carried from segment to segment of running videos."""

    policy: PolicyState
    total_BC: Tensor
    """Sum of the weighted scores so far."""
    weight_B: Tensor
    """Sum of the fusion weights of what was used."""
    segments: int


class AdaMML(nn.Module):
    """Policy, sub-networks and fusion weights."""

    def __init__(self, config: AdaMMLConfig, num_classes: int, stack: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.nets = nn.ModuleDict(
            {
                name: SegmentNet(config.nets[name], channels_of(name, stack), num_classes, config.dropout)
                for name in config.modalities
            }
        )
        self.policy = JointPolicy(config, stack)
        count = len(config.modalities)
        self.fusion = nn.Parameter(torch.full((count - 1,), 1 / count))
        """Weights of all modalities but the last, whose weight is what is missing to 1. One may become negative."""

    @property
    def recognition(self) -> tuple[nn.Module, ...]:
        """The sub-networks."""
        return tuple(self.nets.values())

    def weights(self) -> Tensor:
        """Return the fusion weights (K,), whose sum is 1."""
        return torch.cat((self.fusion, 1 - self.fusion.sum(0, keepdim=True)))

    # --- deciding ---

    def joint(self, inputs: Inputs) -> Tensor:
        """Return the policy's joint feature of every segment (B,S,J), all segments as one batch."""
        views = {name: policy_view(name, inputs[name], self.config) for name in self.config.policy_modalities}
        segments = next(iter(views.values())).shape[:2]
        features = self.policy.features({name: view.flatten(0, 1) for name, view in views.items()})
        joint_BSJ: Tensor = features.unflatten(0, segments)  # type: ignore[no-untyped-call]
        return joint_BSJ

    def decision(
        self,
        logits_BSK2: Tensor,
        available_BSK: Tensor,
        mode: Mode,
        *,
        threshold: float = 0.5,
        seed_B: Tensor | None = None,
        stream: int = 0,
    ) -> Decision:
        """Turn logits into decisions; what a video does not have is never used.

        Args:
            logits_BSK2: of the policy.
            available_BSK: bool.
            mode: see `EvalConfig.decide`.
            threshold: for `threshold`.
            seed_B: for `sample`: seeds of the videos' draws.
            stream: for `sample`: another number gives another draw.
        """
        if mode == "sample":
            assert seed_B is not None, "sampled decisions need the clips' seeds"
            noise = gumbel_noise(seed_B, tuple(logits_BSK2.shape[1:]), stream=stream)
            used = decide(logits_BSK2 + noise, "argmax")
        else:
            used = decide(logits_BSK2, mode, threshold)
        used = used & available_BSK
        if self.config.least_one:
            used = used | self._surest(logits_BSK2, available_BSK, used)
        return Decision(logits_BSK2, used)

    def _surest(self, logits_BSK2: Tensor, available_BSK: Tensor, used_BSK: Tensor) -> Tensor:
        """Return the one segment and modality that a video which would skip everything uses after all."""
        margin = logits_BSK2[..., 1] - logits_BSK2[..., 0]
        flat = margin.masked_fill(~available_BSK, -torch.inf).flatten(1)
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, flat.argmax(1, keepdim=True), True)
        idle_B1 = ~used_BSK.flatten(1).any(1, keepdim=True)
        return (chosen & idle_B1).view_as(used_BSK) & available_BSK

    # --- recognising ---

    def segment_scores(self, inputs: Inputs) -> Tensor:
        """Run every sub-network on every segment: class scores (B,S,K,C) fp32, without the fusion weights."""
        scores = []
        for name, net in self.nets.items():
            value = inputs[name]
            scores.append(net(value.flatten(0, 1)).unflatten(0, value.shape[:2]))
        return torch.stack(scores, dim=2)

    def fuse(self, scores_BSKC: Tensor, used_BSK: Tensor, weights_K: Tensor | None = None) -> Tensor:
        """Return the video's score (B,C) = Σ_s Σ_k w_k·u·ℓ_k(s), divided as `AdaMMLConfig.mean` says.

        Args:
            scores_BSKC: class scores ℓ.
            used_BSK: decisions u, as numbers; gradients reach them.
            weights_K: fusion weights; None takes the learned ones.
        """
        weights = self.weights() if weights_K is None else weights_K
        weighted = used_BSK * weights
        total = torch.einsum("bsk,bskc->bc", weighted, scores_BSKC)
        return total / self._divisor(weighted.sum((1, 2)), used_BSK.shape[1])[:, None]

    def _divisor(self, weight_B: Tensor, segments: int) -> Tensor:
        if self.config.mean == "segments":
            return torch.full_like(weight_B, float(segments))
        # Weights may be negative and cancel: then there is nothing sensible to divide by.
        return torch.where(weight_B.abs() < 1e-6, torch.ones_like(weight_B), weight_B)

    def recognise(self, select: Select, used_BSK: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Run each sub-network on the segments that use it, and on no other.

        Waits for the device once, for the number of rows of each sub-network.

        Args:
            select: gives the inputs of chosen rows.
            used_BSK: bool.

        Returns:
            Weighted scores summed over modalities (B,S,C) fp32, zero where nothing was used; rows per sub-network.
        """
        batch, segments, _ = used_BSK.shape
        flat = used_BSK.flatten(0, 1)
        # Chosen rows first, in order: indices without boolean masks, whose shapes depend on data.
        order = flat.to(torch.int8).argsort(dim=0, descending=True, stable=True)
        counts = tuple(int(count) for count in flat.sum(0).tolist())
        weights = self.weights()
        total = torch.zeros(batch * segments, self.num_classes, device=used_BSK.device)
        for place, name in enumerate(self.config.modalities):
            if counts[place] == 0:
                continue
            rows = order[: counts[place], place]
            total.index_add_(0, rows, weights[place] * self.nets[name](select(name, rows)))
        scores_BSC: Tensor = total.unflatten(0, (batch, segments))  # type: ignore[no-untyped-call]
        return scores_BSC, counts

    def answer(self, select: Select, decision: Decision) -> Answer:
        """Recognise what was decided and fuse it."""
        scores_BSC, rows = self.recognise(select, decision.used_BSK)
        weight_B = (decision.used_BSK * self.weights()).sum((1, 2))
        score = scores_BSC.sum(1) / self._divisor(weight_B, decision.used_BSK.shape[1])[:, None]
        return Answer(score, decision.used_BSK, decision.logits_BSK2, rows)

    def forward(
        self,
        inputs: Inputs,
        available_BSK: Tensor,
        mode: Mode = "argmax",
        *,
        threshold: float = 0.5,
        seed_B: Tensor | None = None,
    ) -> Answer:
        """Decide for all segments at once, run what was chosen, fuse."""
        logits, _ = self.policy.unroll(self.joint(inputs), None)
        decision = self.decision(logits, available_BSK, mode, threshold=threshold, seed_B=seed_B)
        return self.answer(rows_of(inputs), decision)

    def step(
        self,
        inputs: Inputs,
        available_BSK: Tensor,
        state: OnlineState | None = None,
        mode: Mode = "argmax",
        *,
        threshold: float = 0.5,
    ) -> tuple[Answer, OnlineState]:
        """Go on with running videos by their next segments (causal: later ones change nothing that was said).

        Args:
            inputs: the next segments, (B,S,T,C,H,W) with any S, usually 1.
            available_BSK: bool.
            state: of the segments before; None at the start.
            mode: `argmax` or `threshold`.
            threshold: for `threshold`.

        Returns:
            The answer over all segments so far, with the decisions of the new ones; the state for the next call.

        Raises:
            ValueError: `least_one` is set: what was skipped before cannot be taken back.
        """
        if self.config.least_one:
            raise ValueError("least_one looks back over all segments of a video, so it cannot be used online")
        logits, policy_state = self.policy.unroll(self.joint(inputs), None if state is None else state.policy)
        decision = self.decision(logits, available_BSK, mode, threshold=threshold)
        scores_BSC, rows = self.recognise(rows_of(inputs), decision.used_BSK)
        total, weight = scores_BSC.sum(1), (decision.used_BSK * self.weights()).sum((1, 2))
        segments = decision.used_BSK.shape[1]
        if state is not None:
            total, weight, segments = total + state.total_BC, weight + state.weight_B, segments + state.segments
        score = total / self._divisor(weight, segments)[:, None]
        answer = Answer(score, decision.used_BSK, logits, rows)
        return answer, OnlineState(policy_state, total, weight, segments)


def rows_of(inputs: Inputs) -> Select:
    """Return what selects rows of inputs that are all there."""
    return lambda name, rows: inputs[name].flatten(0, 1).index_select(0, rows)
