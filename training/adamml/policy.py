"""The policy: what each segment shows at low cost, a recurrent state over segments, and a decision per modality.

Shape suffixes: B videos, S segments, N = B·S, T frames, C channels, J joint feature, K modalities. The last axis of
logits is (skip, use).
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.adamml.config import AdaMMLConfig
from training.adamml.networks import SegmentNet, channels_of


class PolicyState(NamedTuple):
    """What the policy carries from segment to segment; without recurrence `hidden` and `cell` have width 0."""

    hidden_BH: Tensor
    cell_BH: Tensor
    logits_BK2: Tensor
    """Of the last segment."""


class JointPolicy(nn.Module):
    """Extractors of all modalities, two joint layers, an LSTM and a head per modality (§4).

    The LSTM sees the joint feature and, with `feed_back`, the raw logits of the segment before (modality by modality,
    skip before use), zeros before the first. A decision depends on the segments so far, not on later ones.

    Args:
        config: of all networks.
        stack: frames that a stack of differences or flow is made of.
    """

    def __init__(self, config: AdaMMLConfig, stack: int) -> None:
        super().__init__()
        self.config = config
        self.num_decisions = len(config.modalities)
        extractors: dict[str, SegmentNet] = {
            modality: SegmentNet(config.policy_nets[modality], channels_of(modality, stack), None, 0.0)
            for modality in config.policy_modalities
        }
        self.extractors = nn.ModuleDict(extractors)
        width = sum(net.out_channels for net in extractors.values())
        self.joint = nn.Sequential(
            nn.Linear(width, config.joint), nn.ReLU(), nn.Linear(config.joint, config.joint), nn.ReLU()
        )
        fed_back = 2 * self.num_decisions if config.feed_back else 0
        self.lstm = nn.LSTMCell(config.joint + fed_back, config.hidden) if config.recurrent else None
        # The parallel heads as one layer; a shared one is repeated for all modalities.
        heads = 1 if config.shared_decision else self.num_decisions
        self.heads = nn.Linear(config.hidden if config.recurrent else config.joint, 2 * heads)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the joint features (N,J) of segments, all independent of one another.

        Args:
            inputs: (N,T,C,h,w) of each modality that the policy sees; others are left alone.

        Raises:
            ValueError: one is missing.
        """
        if missing := [modality for modality in self.extractors if modality not in inputs]:
            raise ValueError(f"the policy has no input {', '.join(missing)}; it got {', '.join(inputs) or 'nothing'}")
        seen = [net(inputs[modality]) for modality, net in self.extractors.items()]
        joint: Tensor = self.joint(torch.cat(seen, 1))
        return joint

    def unroll(self, joint_BSJ: Tensor, state: PolicyState | None) -> tuple[Tensor, PolicyState]:
        """Return the logits (B,S,K,2) of segments in order, and the state after them.

        A video may be cut into calls anywhere: logits are those of one call. In the parameters' precision (fp32),
        also under autocast.

        Args:
            joint_BSJ: joint features, at least one segment.
            state: after the segments before; None at the start of the videos.
        """
        with _own_precision(joint_BSJ.device):
            joint = joint_BSJ.to(self.heads.weight.dtype)
            if state is None:
                state = self._start(joint)
            if self.lstm is None:
                logits = self._logits(joint)
                return logits, state._replace(logits_BK2=logits[:, -1])
            steps = []
            for feature in joint.unbind(1):
                given = torch.cat((feature, state.logits_BK2.flatten(1)), 1) if self.config.feed_back else feature
                hidden, cell = self.lstm(given, (state.hidden_BH, state.cell_BH))
                state = PolicyState(hidden, cell, self._logits(hidden))
                steps.append(state.logits_BK2)
            return torch.stack(steps, 1), state

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits (B,S,K,2) of whole videos; inputs are (B,S,T,C,h,w) of each modality."""
        seen = {modality: inputs[modality] for modality in self.extractors if modality in inputs}
        joint = self.features({modality: x.flatten(0, 1) for modality, x in seen.items()})
        batch, segments = next(iter(seen.values())).shape[:2]
        joint_BSJ: Tensor = joint.unflatten(0, (batch, segments))  # type: ignore[no-untyped-call]
        logits, _ = self.unroll(joint_BSJ, None)
        return logits

    def _start(self, joint_BSJ: Tensor) -> PolicyState:
        batch, hidden = joint_BSJ.shape[0], self.config.hidden if self.config.recurrent else 0
        return PolicyState(
            joint_BSJ.new_zeros(batch, hidden),
            joint_BSJ.new_zeros(batch, hidden),
            joint_BSJ.new_zeros(batch, self.num_decisions, 2),
        )

    def _logits(self, x: Tensor) -> Tensor:
        """(…,H) → (…,K,2)."""
        logits: Tensor = self.heads(x).unflatten(-1, (-1, 2))
        return logits.expand(*logits.shape[:-2], self.num_decisions, 2)


def _own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off. The meta device, on which costs are counted, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
