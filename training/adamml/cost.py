"""What the networks cost per segment: counted from the networks, or by the constants of the public code.

The paper's "GFLOPs" are multiply-accumulates of convolutions, called GMAC here, plus a constant for the LSTM. The
public code adds them up from constants; one of them is wrong: the policy's network over differences (or flow) is
charged for 224 × 224 pixels where it sees 160 × 160.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import torch

from training.adamml.config import AdaMMLConfig, Modality, NetConfig
from training.adamml.networks import SegmentNet, channels_of
from training.adamml.policy import JointPolicy
from training.core.config import ConfigError
from training.core.cost import count_macs, count_params

Constants = Literal["measured", "release", "corrected"]
"""`measured`: counted here, with linear layers; `release`: the public code's constants; `corrected`: these with the
policy's network over differences charged for the pixels that it sees."""

RECOGNITION: Mapping[Modality, int] = {
    "rgb": 14_135_984_128,
    "flow": 16_338_911_232,
    "rgbdiff": 17_912_430_592,
    "audio": 381_739_008,
}
"""MAC per segment. The code has none for `rgbdiff`: it is a count, and ten times it the supplement's 179.12."""

POLICY: Mapping[Modality, int] = {
    "rgb": 375_446_400,
    "flow": 909_283_200,
    "rgbdiff": 909_283_200,
    "audio": 381_739_008,
}
"""MAC per segment of the policy's extractors."""

CORRECTED: Mapping[Modality, int] = {**POLICY, "flow": 463_920_000, "rgbdiff": 463_920_000}
"""The same, with 15 channels at 160 × 160; the code has one constant for both, so flow (10 channels) has it too."""

LSTM = 2_359_296
"""MAC per segment, without the logits that are fed back."""


def recognition_shape(config: AdaMMLConfig, modality: Modality, stack: int, sound_samples: int) -> tuple[int, ...]:
    """Return (T,C,H,W) of a segment as the modality's sub-network gets it.

    Args:
        config: of all networks.
        modality: which one.
        stack: frames of a stack of differences or flow.
        sound_samples: samples of sound per segment; any number where there is no sound.

    Raises:
        ConfigError: sound without a spectrogram.
    """
    if modality == "audio":
        if config.spectrogram is None:
            raise ConfigError("sound needs model.spectrogram")
        return 1, channels_of(modality, stack), *config.spectrogram.shape(sound_samples)
    return config.num_frames, channels_of(modality, stack), config.size, config.size


def policy_shape(config: AdaMMLConfig, modality: Modality, stack: int, sound_samples: int) -> tuple[int, ...]:
    """Return (T,C,H,W) of a segment as the policy gets it; sound is not reduced. Arguments: `recognition_shape`."""
    if modality == "audio":
        return recognition_shape(config, modality, stack, sound_samples)
    return config.policy_frames, channels_of(modality, stack), config.policy_size, config.policy_size


class PartCost(NamedTuple):
    """Of one sub-network, or of the policy, per segment."""

    params: int
    macs: int
    conv_macs: int
    """Of its convolutions alone, as the paper counts."""


def count_recognition(
    config: AdaMMLConfig, modality: Modality, stack: int, num_classes: int, sound_samples: int
) -> PartCost:
    """Count what one modality's sub-network costs; arguments as of `segment_gmac`."""
    with torch.device("meta"):
        net = SegmentNet(config.nets[modality], channels_of(modality, stack), num_classes, config.dropout)
        segment = torch.empty(1, *recognition_shape(config, modality, stack, sound_samples))
    macs = count_macs(net, segment)
    linear = net.frames_left(segment.shape[1]) * num_classes * net.out_channels
    return PartCost(count_params(net), macs, macs - linear)


def count_policy(config: AdaMMLConfig, stack: int, sound_samples: int) -> PartCost:
    """Count what the policy costs; arguments as of `segment_gmac`."""
    with torch.device("meta"):
        policy = JointPolicy(config, stack)
        inputs = {
            modality: torch.empty(1, 1, *policy_shape(config, modality, stack, sound_samples))
            for modality in config.policy_modalities
        }
    macs = count_macs(policy, inputs)
    # Each matrix of the layers behind the extractors is used once per segment.
    layers = [layer for layer in (policy.joint, policy.lstm, policy.heads) if layer is not None]
    linear = sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.dim() == 2)
    return PartCost(count_params(policy), macs, macs - linear)


def segment_gmac(
    config: AdaMMLConfig,
    stack: int,
    num_classes: int,
    sound_samples: int | None,
    constants: Constants,
    only: Collection[str] | None = None,
) -> dict[str, float]:
    """Return GMAC per segment of each modality's sub-network, and of the policy (key `policy`).

    Args:
        config: of all networks.
        stack: frames of a stack of differences or flow.
        num_classes: K.
        sound_samples: samples of sound per segment; None where no sound is read.
        constants: counted, or the public code's.
        only: keys to return, where not everything that the config names is read; None: all.

    Raises:
        ConfigError: constants of the public code for networks or inputs of other sizes than the paper's.
    """
    macs: dict[str, int] = {}
    chosen = [modality for modality in config.modalities if only is None or modality in only]
    policy = only is None or "policy" in only
    if constants == "measured":
        for modality in chosen:
            macs[modality] = count_recognition(config, modality, stack, num_classes, sound_samples or 0).macs
        if policy:
            macs["policy"] = count_policy(config, stack, sound_samples or 0).macs
    else:
        _check_paper_sizes(config, stack, sound_samples, constants)
        macs |= {modality: RECOGNITION[modality] for modality in chosen}
        if policy:
            macs["policy"] = _policy_constant(config.policy_modalities, constants)
    return {name: count / 1e9 for name, count in macs.items()}


def paper_cost(
    usage: Mapping[Modality, float],
    policy: Collection[Modality],
    *,
    constants: Literal["release", "corrected"] = "release",
    segments: int = 10,
) -> float:
    """Return the cost of a video as the paper states it, in its GFLOPs (GMAC here).

    S · (Σ usage · sub-network + Σ extractors of the policy + LSTM).

    Args:
        usage: share of the segments on which each modality is used.
        policy: modalities that the policy sees; none: no policy, everything is used blindly.
        constants: see `Constants`.
        segments: S.

    Raises:
        ValueError: an unknown modality, or a share outside [0, 1].
    """
    if unknown := sorted({*usage, *policy} - set(RECOGNITION)):
        raise ValueError(f"unknown modalities {unknown}; known: {', '.join(RECOGNITION)}")
    if wrong := {modality: share for modality, share in usage.items() if not 0 <= share <= 1}:
        raise ValueError(f"usage must be shares between 0 and 1, got {wrong}")
    used = math.fsum(share * RECOGNITION[modality] for modality, share in usage.items())
    return segments * (used + _policy_constant(policy, constants)) / 1e9


def _policy_constant(modalities: Collection[Modality], constants: Constants) -> int:
    if not modalities:
        return 0
    table = CORRECTED if constants == "corrected" else POLICY
    return sum(table[modality] for modality in modalities) + LSTM


def _check_paper_sizes(config: AdaMMLConfig, stack: int, sound_samples: int | None, constants: Constants) -> None:
    inputs = set(config.inputs)
    pictures = inputs - {"audio"}
    found: dict[str, tuple[object, object]] = {
        "model.joint": (config.joint, 2048),
        "model.hidden": (config.hidden, 256),
        "model.recurrent": (config.recurrent, True),
    }
    if pictures:
        found |= {
            "model.size": (config.size, 224),
            "model.num_frames": (config.num_frames, 8),
            "model.policy_size": (config.policy_size, 160),
            "model.policy_frames": (config.policy_frames, 4),
        }
    if {"flow", "rgbdiff"} & inputs:
        found["data.stack"] = (stack, 6)
    if config.spectrogram is not None and sound_samples is not None:
        found["the spectrogram's shape"] = (config.spectrogram.shape(sound_samples), (256, 256))
    found |= _nets("nets", config.nets, pictures_name="resnet50")
    found |= _nets("policy_nets", config.policy_nets, pictures_name="mobilenetv2")
    if wrong := [f"{field} is {ours!r}, not {theirs!r}" for field, (ours, theirs) in found.items() if ours != theirs]:
        raise ConfigError(
            f"the constants `{constants}` hold for the paper's sizes only: {'; '.join(wrong)}; use `measured`"
        )


def _nets(
    field: str, nets: Mapping[Modality, NetConfig], *, pictures_name: str
) -> Iterable[tuple[str, tuple[object, object]]]:
    for modality, net in nets.items():
        name = "mobilenetv2" if modality == "audio" else pictures_name
        yield f"model.{field}.{modality}", ((net.name, dict(net.options)), (name, {}))
