"""Named models of the family for `fovea cost` and `fovea list --models`."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from training.core.config import ConfigError, validate
from training.core.cost import CostError, resolve_overrides
from training.core.system import CostRow

SETTINGS: dict[str, int | float | bool | str] = {
    "part": "all",
    "modalities": "rgb,audio",
    "proxy": "none",
    "classes": 31,
    "frames": 8,
    "size": 224,
    "policy_frames": 4,
    "policy_size": 160,
    "stack": 6,
    "samples": 30720,
    "constants": "measured",
}
"""Settings of the cost command: those of the paper on Kinetics-Sounds. `part` is one modality's sub-network, `policy`,
`fusion` (the sub-networks of all modalities) or `all` (fusion and policy); `proxy` what the policy sees for flow."""


def paper_config(
    modalities: tuple[str, ...], *, proxy: Literal["none", "rgbdiff"] = "none", **changes: Any
) -> dict[str, Any]:
    """Return the values of an `AdaMMLConfig` with the paper's networks and sizes, without weights.

    Args:
        modalities: in the order of the decisions.
        proxy: what the policy sees in the place of flow.
        **changes: of its fields.
    """

    def net(name: str) -> dict[str, Any]:
        return {"name": name, "weights": None, "norms": "batch"}

    proxies = {} if proxy == "none" else {"flow": proxy}
    spectrogram = {"n_fft": 511, "window": 240, "hop": 120, "epsilon": 1e-6}
    return {
        "modalities": modalities,
        "proxies": proxies,
        "size": 224,
        "num_frames": 8,
        "nets": {name: net("mobilenetv2" if name == "audio" else "resnet50") for name in modalities},
        "dropout": 0.5,
        "policy_nets": {proxies.get(name, name): net("mobilenetv2") for name in modalities},
        "policy_frames": 4,
        "policy_size": 160,
        "joint": 2048,
        "hidden": 256,
        "recurrent": True,
        "feed_back": True,
        "shared_decision": False,
        "spectrogram": spectrogram if "audio" in modalities else None,
        "constants": "measured",
        "mean": "segments",
        "least_one": False,
        **changes,
    }


def adamml_cost(overrides: dict[str, str]) -> CostRow:
    """AdaMML, ResNet-50 and MobileNetV2, per segment of 8 × 224²; part, modalities, proxy, constants, … can be set.

    `gmac` counts linear layers too; `measured["conv_gmac"]` only convolutions, as the paper does.

    Raises:
        ConfigError: unknown or unusable setting.
    """
    from training.adamml.config import AdaMMLConfig, Modality
    from training.adamml.cost import Constants, count_policy, count_recognition, segment_gmac

    values = resolve_overrides("adamml", overrides, SETTINGS)
    known = get_args(Modality)
    modalities = tuple(filter(None, values["modalities"].split(",")))
    for modality in modalities:
        _check("modalities", modality, known)
    _check("part", values["part"], (*known, "policy", "fusion", "all"))
    _check("proxy", values["proxy"], ("none", "rgbdiff"))
    _check("constants", values["constants"], get_args(Constants))
    for key, value in values.items():
        if isinstance(value, int) and value < 1:
            raise CostError(f"{key} of model 'adamml' must be positive, got {value}")
    proxy, part = values["proxy"], values["part"]
    if proxy != "none" and "flow" not in modalities:
        raise CostError(f"proxy {proxy!r} stands for flow, which is none of the modalities {', '.join(modalities)}")
    if part in known:
        # A sub-network costs what it costs, whatever else there is.
        modalities, proxy = (part,), "none"
    decided = part in ("policy", "all")
    sizes = {"num_frames": values["frames"], **{key: values[key] for key in ("size", "policy_frames", "policy_size")}}
    if not decided:
        # There is no policy whose input would have to fit.
        sizes["policy_frames"] = math.gcd(values["policy_frames"], values["frames"])
        sizes["policy_size"] = min(values["policy_size"], values["size"])
    config = validate(AdaMMLConfig, paper_config(modalities, proxy=proxy, **sizes), "cost of adamml")

    stack, classes, samples = values["stack"], values["classes"], values["samples"]
    try:
        recognised = () if part == "policy" else config.modalities
        costs = {name: count_recognition(config, name, stack, classes, samples) for name in recognised}
        if decided:
            costs["policy"] = count_policy(config, stack, samples)
        if values["constants"] == "measured":
            gmac = sum(cost.macs for cost in costs.values()) / 1e9
        else:
            parts = segment_gmac(config, stack, classes, samples, values["constants"])
            gmac = sum(parts[name] for name in costs)
    except ConfigError:
        raise
    except ValueError as error:  # a stack without fields
        raise CostError(f"model 'adamml': {error}") from None
    # One fusion weight follows from the others.
    fusion = len(recognised) - 1 if part in ("fusion", "all") else 0
    return CostRow(
        model="adamml",
        params=sum(cost.params for cost in costs.values()) + fusion,
        gmac=gmac,
        input=_input(config.policy_modalities if part == "policy" else modalities, values),
        per="segment",
        measured={"conv_gmac": sum(cost.conv_macs for cost in costs.values()) / 1e9},
    )


def _check(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CostError(f"{key} of model 'adamml' must be one of {', '.join(known)}, got {value!r}")


def _input(modalities: tuple[str, ...], values: dict[str, Any]) -> str:
    policy = values["part"] == "policy"
    frames, size = (values[f"policy_{key}" if policy else key] for key in ("frames", "size"))
    return ", ".join(
        f"{name} {values['samples']} samples" if name == "audio" else f"{name} {frames}x{size}x{size}"
        for name in modalities
    )


MODELS: dict[str, Callable[[dict[str, str]], CostRow]] = {"adamml": adamml_cost}
