"""Loop-free roll-out of the patch policy: all actions, rewards and baselines of a batch at once.

The policy's state depends on the frames alone (never on f_L or on earlier actions), so all T actions can
be drawn before f_L runs; f_L then sees the policy's and the random patches in one batch; and the random
branch, which never advances the classifier's state, is one GRU step for all B·T pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from training.adafocus.config import PolicyConfig
from training.adafocus.model import AdaFocus, Glance, frames_of
from training.core.system import ClipBatch
from training.layers.patches import crop_patches, random_origins
from training.layers.seeded import seeded_categorical

STREAM_ACTION = 21
STREAM_BASELINE = 22


class Rollout(NamedTuple):
    """One batch of videos seen through the policy; no gradients."""

    glance: Glance
    action_BT: Tensor
    log_prob_BT: Tensor
    """Of the actions, under the policy that drew them."""
    reward_BT: Tensor
    confidence_BT: Tensor
    """Probability of the label after each of the policy's patches."""


@torch.no_grad()
def collect(net: AdaFocus, config: PolicyConfig, batch: ClipBatch, glance: Glance, logits_BTA: Tensor) -> Rollout:
    """Draw actions and compute the reward of every step (§3.2).

    r_t = softmax(f_C(g_t, f_L(policy patch), h_{t-1}))_y - softmax(f_C(g_t, f_L(random patch), h_{t-1}))_y, where
    h_{t-1} is the state after the policy's own earlier patches. Softmax and reward are fp32: early rewards are of
    the order 1e-3.
    """
    action = seeded_categorical(logits_BTA.float(), batch.seed_B, stream=STREAM_ACTION)
    log_prob = logits_BTA.float().log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)
    size, steps = action.shape
    origins = [net.origins(action)]
    draws = config.baseline_draws if config.reward == "random" else 0
    origins += [
        random_origins(
            (size, steps), net.config.size, net.config.patch, seed_B=batch.seed_B, stream=STREAM_BASELINE + draw
        )
        for draw in range(draws)
    ]
    features = _features(net, batch.video_BCTHW, torch.stack(origins))
    fused = net.fuse(glance, features[0])
    step_logits, hidden = net.classifier(fused)
    confidence = _confidence(step_logits, batch.label_B)
    if config.reward == "confidence":
        reward = confidence
    elif config.reward == "previous":
        reward = confidence - torch.cat((torch.zeros_like(confidence[:, :1]), confidence[:, :-1]), dim=1)
    else:
        others = features[1:] if config.reward == "random" else torch.zeros_like(features[:1])
        reward = confidence - _baseline(net, glance, others, hidden, batch.label_B)
    return Rollout(glance, action, log_prob, reward, confidence)


def _features(net: AdaFocus, video_BCTHW: Tensor, origin_NBT2: Tensor) -> Tensor:
    """Run f_L once on N patches of every frame: (N,B,T,D)."""
    frames = frames_of(video_BCTHW)
    patches = torch.cat([crop_patches(frames, origin.flatten(0, 1), net.config.patch) for origin in origin_NBT2])
    return net.local(patches).unflatten(0, origin_NBT2.shape[:3])


def _confidence(logits_BTK: Tensor, label_B: Tensor) -> Tensor:
    """Return the label's probability at every step (B,T), fp32."""
    index = label_B[:, None, None].expand(-1, logits_BTK.shape[1], 1)
    return logits_BTK.float().softmax(-1).gather(-1, index).squeeze(-1)


def _baseline(net: AdaFocus, glance: Glance, other_NBTD: Tensor, hidden_BTH: Tensor, label_B: Tensor) -> Tensor:
    """Return the mean confidence (B,T) that other patches would have given at each step."""
    size, steps = hidden_BTH.shape[:2]
    before = torch.cat((torch.zeros_like(hidden_BTH[:, :1]), hidden_BTH[:, :-1]), dim=1)
    state = before.reshape(1, size * steps, -1).contiguous()
    label = label_B.repeat_interleave(steps)
    total = torch.zeros(size, steps, device=hidden_BTH.device)
    for other in other_NBTD:
        fused = net.fuse(glance, other).flatten(0, 1)[:, None]
        logits, _ = net.classifier(fused, state)
        total += _confidence(logits, label).view(size, steps)
    return total / len(other_NBTD)
