"""The patch policy π and the arithmetic of its training (AdaFocus V1, discrete actions)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.core.distributed import mean_and_std


class PolicyOutput(NamedTuple):
    """Per video and step: action logits (B,T,n²), state values (B,T)."""

    logits_BTA: Tensor
    value_BT: Tensor


class GridPolicy(nn.Module):
    """Recurrent actor-critic over f_G's feature maps (public code: `ActorCritic`; no batch norm).

    1×1 convolution, ReLU, linear, ReLU, GRU; actor and critic are linear. The state is a function of the
    frames alone, neither of earlier actions nor of f_L, so a whole roll-out is one forward pass.

    Args:
        channels: of f_G's map.
        cells: spatial positions of the map, h·w.
        reduced: output channels of the 1×1 convolution.
        hidden: width of the linear layer and the GRU.
        num_actions: n².
    """

    def __init__(self, channels: int, cells: int, reduced: int, hidden: int, num_actions: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1, bias=False)
        self.encode = nn.Linear(reduced * cells, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.actor = nn.Linear(hidden, num_actions)
        self.critic = nn.Linear(hidden, 1)

    def forward(self, maps_BTChw: Tensor, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor]:
        """Return logits and values for all steps, and the GRU state (1,B,hidden) after the last."""
        batch, steps = maps_BTChw.shape[:2]
        reduced = self.reduce(maps_BTChw.flatten(0, 1)).relu()
        encoded = self.encode(reduced.flatten(1)).relu().view(batch, steps, -1)
        hidden, state = self.gru(encoded, state)
        return PolicyOutput(self.actor(hidden).float(), self.critic(hidden).squeeze(-1).float()), state


def discounted_returns(reward_BT: Tensor, discount: float) -> Tensor:
    """Return G_t = r_t + γ·G_{t+1}, Monte-Carlo to the end (λ = 1), as one product with a T×T matrix."""
    steps = reward_BT.shape[1]
    age = torch.arange(steps, device=reward_BT.device)
    lag = (age[:, None] - age[None, :]).to(reward_BT.dtype)  # lag[s, t] = s - t
    weight = torch.where(lag >= 0, torch.as_tensor(discount, dtype=reward_BT.dtype) ** lag.clamp(min=0), 0.0)
    return reward_BT @ weight


def normalise_returns(returns_BT: Tensor) -> Tensor:
    """Return (G - mean) / (std + 1e-5) over all T·B values of the global batch (public code: `PPO.update`)."""
    mean, std = mean_and_std(returns_BT)
    return (returns_BT - mean) / (std + 1e-5)


class PolicyLoss(NamedTuple):
    """Loss and what to log about it."""

    loss: Tensor
    entropy: Tensor
    value_loss: Tensor
    ratio_error: Tensor
    """max |ρ - 1|; zero in the first pass."""
    clip_share: Tensor
    explained_variance: Tensor


def policy_loss(
    output: PolicyOutput,
    action_BT: Tensor,
    old_log_prob_BT: Tensor | None,
    target_BT: Tensor,
    *,
    clip: float,
    entropy_weight: float,
    value_weight: float,
) -> PolicyLoss:
    """Clipped surrogate, value and entropy terms in fp32 (spec of the public code, §3.3 steps 4 and 5).

    Args:
        output: of the present policy on the stored maps.
        action_BT: actions of the roll-out.
        old_log_prob_BT: their log-probabilities then; None in the first pass, where they are equal.
        target_BT: normalised returns.
    """
    log_probs = output.logits_BTA.log_softmax(-1)
    log_prob = log_probs.gather(-1, action_BT[..., None]).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    old = log_prob.detach() if old_log_prob_BT is None else old_log_prob_BT
    ratio = (log_prob - old).exp()
    advantage = target_BT - output.value_BT.detach()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    value_loss = (output.value_BT - target_BT).square().mean()
    loss = -(surrogate + entropy_weight * entropy).mean() + value_weight * value_loss
    residual = (target_BT - output.value_BT.detach()).var()
    return PolicyLoss(
        loss=loss,
        entropy=entropy.mean().detach(),
        value_loss=value_loss.detach(),
        ratio_error=(ratio - 1).abs().max().detach(),
        clip_share=(ratio != clipped).float().mean().detach(),
        explained_variance=1 - residual / target_BT.var().clamp(min=1e-8),
    )
