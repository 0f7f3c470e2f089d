"""Cost of models: multiply-accumulates and parameters from the network itself, never from a table.

MACs are counted on the meta device with torch's own operator counter (FLOPs / 2, exact for convolutions,
matrix products and everything made of them): no data, no weights, no arithmetic. Not counted, as in the
papers: normalisation, activations, pooling, resizing, biases, memory traffic. What a paper calls "GFLOPs"
is called GMAC here.
"""

import copy
import difflib
import math
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from training.core.config import ConfigError
from training.core.system import CostRow
from training.registry import FAMILIES, load_family

__all__ = [
    "CostError",
    "CostRow",
    "cost_of",
    "count_macs",
    "count_params",
    "expected_cost",
    "latency_ms",
    "list_models",
    "meta_copy",
    "resolve_overrides",
]


class CostError(ConfigError):
    """A model or setting that the cost command does not know; the message lists what there is."""


ModuleT = TypeVar("ModuleT", bound=nn.Module)

# --- counting ---------------------------------------------------------------------------------


def _mv_flop(matrix: torch.Size, vector: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv_flop(bias: torch.Size, matrix: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(matrix)


def _dot_flop(left: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(left)


def _baddbmm_flop(sum_: torch.Size, left: torch.Size, right: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(left) * right[-1]


# Products with a vector, and those added in place, are missing in torch's table.
_MORE_FORMULAS: dict[Any, Any] = {
    torch.ops.aten.mv: _mv_flop,
    torch.ops.aten.addmv: _addmv_flop,
    torch.ops.aten.dot: _dot_flop,
    torch.ops.aten.vdot: _dot_flop,
    torch.ops.aten.baddbmm_: _baddbmm_flop,
}


def meta_copy(module: ModuleT) -> ModuleT:
    """Copy the structure; every parameter and buffer is a meta tensor, so nothing large is copied."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, memo)


def count_macs(module_or_fn: Callable[..., Any], *inputs: Any) -> int:
    """Count the multiply-accumulates of one call.

    A module, or a method of one, is copied to the meta device, put into eval mode and called with meta
    tensors of the inputs' shapes: its own weights, state and mode stay as they are. Any other callable is
    called with the inputs as given (build its modules under `torch.device("meta")` to make that free).

    Args:
        module_or_fn: what to call.
        *inputs: positional arguments; tensors may lie on any device.

    Returns:
        MACs for the whole batch: with a batch of 1, MACs per item.
    """
    call = module_or_fn
    owner = module_or_fn if isinstance(module_or_fn, nn.Module) else getattr(module_or_fn, "__self__", None)
    if isinstance(owner, nn.Module):
        replica = meta_copy(owner).eval()
        call = replica if owner is module_or_fn else types.MethodType(module_or_fn.__func__, replica)  # type: ignore[attr-defined]
        inputs = tree_map(lambda x: x.detach().to("meta") if isinstance(x, Tensor) else x, inputs)
    # Fused attention kernels hide their products from the counter; the MATH backend shows them. In
    # inference mode composite operators would not be taken apart.
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        counter = FlopCounterMode(display=False, custom_mapping=_MORE_FORMULAS)
        with counter:
            call(*inputs)
    return int(counter.get_total_flops()) // 2


def count_params(module: nn.Module) -> int:
    """Count the elements of all distinct parameters (shared ones once; buffers not)."""
    return sum(parameter.numel() for parameter in module.parameters())


def latency_ms(fn: Callable[[], object], *, warmup: int = 3, repeats: int = 20) -> dict[str, float]:
    """Time `fn`, waiting for the accelerator after each call.

    Returns:
        `p50` and `p95` in milliseconds, and `repeats`.
    """
    if warmup < 0 or repeats < 1:
        raise ValueError(f"warmup must be ≥ 0 and repeats ≥ 1, got {warmup} and {repeats}")
    waits = torch.cuda.is_available()
    times: list[float] = []
    for index in range(warmup + repeats):
        if waits:
            torch.cuda.synchronize()
        start = time.perf_counter()
        fn()
        if waits:
            torch.cuda.synchronize()
        if index >= warmup:
            times.append((time.perf_counter() - start) * 1e3)
    times.sort()

    def quantile(q: float) -> float:
        # Nearest rank: a time that was really measured.
        return times[max(math.ceil(q * len(times)) - 1, 0)]

    return {"p50": quantile(0.5), "p95": quantile(0.95), "repeats": float(repeats)}


def expected_cost(gmac: Mapping[str, float], usage: Mapping[str, float]) -> float:
    """Return the usage-weighted cost of an adaptive model.

    Args:
        gmac: cost of one use of each part (a frame's glance, one crop, an exit).
        usage: mean number of uses per video of the same parts, as measured in the evaluation.

    Returns:
        Expected GMAC per video.

    Raises:
        CostError: parts without usage or the reverse, or a negative or non-finite number.
    """
    if set(gmac) != set(usage):
        raise CostError(
            f"parts and usage differ: no usage for {sorted(set(gmac) - set(usage))}, "
            f"no cost for {sorted(set(usage) - set(gmac))}"
        )
    for name in gmac:
        for kind, value in (("cost", gmac[name]), ("usage", usage[name])):
            if not math.isfinite(value) or value < 0:
                raise CostError(f"{kind} of part {name!r} must be a number ≥ 0, got {value}")
    return math.fsum(gmac[name] * usage[name] for name in gmac)


# --- the cost command -------------------------------------------------------------------------

CostBuilder = Callable[[dict[str, str]], CostRow]
"""What a family's `MODELS` maps names to."""


def _builders() -> dict[str, CostBuilder]:
    builders: dict[str, CostBuilder] = {}
    for family in FAMILIES:
        models: Mapping[str, CostBuilder] = load_family(family).MODELS
        for name, builder in models.items():
            if name in builders:
                raise CostError(f"model name {name!r} is used twice (second time in family {family!r})")
            builders[name] = builder
    return builders


def list_models() -> dict[str, str]:
    """Return the models that have a cost row: name → one line about it (its builder's docstring)."""
    return {name: (builder.__doc__ or "").strip().split("\n")[0] for name, builder in _builders().items()}


def cost_of(name: str, overrides: dict[str, str] | None = None) -> CostRow:
    """Return the cost of a model with settings changed, e.g. `cost_of("adafocus_v1", {"patch": "128"})`.

    Raises:
        CostError: unknown model or setting, or a value that cannot be read; with close matches.
    """
    builders = _builders()
    if name not in builders:
        raise CostError(f"unknown model {name!r} (known: {', '.join(builders)}){_hint(name, builders)}")
    return builders[name](dict(overrides or {}))


def resolve_overrides(
    model: str, overrides: Mapping[str, str], defaults: Mapping[str, int | float | bool | str]
) -> dict[str, Any]:
    """Return `defaults` with overrides applied, each converted to the type of its default.

    Raises:
        CostError: unknown setting, or a value of another type.
    """
    values: dict[str, Any] = dict(defaults)
    for key, text in overrides.items():
        if key not in defaults:
            raise CostError(
                f"model {model!r} has no setting {key!r} (it has: {', '.join(defaults)}){_hint(key, defaults)}"
            )
        values[key] = _parse(model, key, text, defaults[key])
    return values


def _parse(model: str, key: str, text: str, default: int | float | bool | str) -> int | float | bool | str:
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif isinstance(default, str):
        return text
    else:
        try:
            return type(default)(text)
        except ValueError:
            pass
    raise CostError(f"setting {key!r} of model {model!r} must be {type(default).__name__}, got {text!r}")


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
