"""RMSProp as TensorFlow and Keras compute it (Hinton's lecture 6e; MoViNet and EfficientNet were trained with it).

It differs from `torch.optim.RMSprop` in two places that matter: ε stands inside the root, so with ε = 1 small
gradients pass almost unscaled, and the momentum buffer holds steps, not directions. A change of the learning rate
therefore reaches only the gradients that come after it.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn


class RMSProp(torch.optim.Optimizer):
    """RMSProp with ε inside the root and the learning rate inside the momentum buffer.

    With g the gradient plus `weight_decay`·w (coupled L2)::

        v ← ρ·v + (1 − ρ)·g²      m ← μ·m + lr·g / √(v + ε)      w ← w − m

    One group's tensors are stepped together and nothing waits for the device. Averages have the parameters' dtype.

    Args:
        params: parameters or groups of them; a group may have its own value of each setting below.
        lr: learning rate.
        rho: ρ, decay rate of the average of squares.
        eps: ε.
        momentum: μ; 0 keeps no buffer.
        weight_decay: factor of the coupled L2.
        square_avg_init: value of v before the first step: zeros as in Keras, or ones, which makes the first
            steps small.

    Raises:
        ValueError: a setting out of bounds, or a parameter in half precision, whose averages would not move.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        rho: float,
        eps: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        square_avg_init: Literal["zeros", "ones"] = "zeros",
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "square_avg_init": square_avg_init,
            },
        )
        for group in self.param_groups:
            if not (0 <= group["rho"] < 1 and 0 <= group["momentum"] < 1):
                raise ValueError(f"rho and momentum must be in [0, 1), got {group['rho']} and {group['momentum']}")
            if not (group["lr"] >= 0 and group["eps"] > 0 and group["weight_decay"] >= 0):
                raise ValueError(
                    f"lr and weight_decay must be ≥ 0 and eps > 0, got {group['lr']}, {group['weight_decay']} and "
                    f"{group['eps']}"
                )
            if group["square_avg_init"] not in ("zeros", "ones"):
                raise ValueError(f"square_avg_init must be zeros or ones, got {group['square_avg_init']!r}")
            for parameter in group["params"]:
                if parameter.dtype not in (torch.float32, torch.float64):
                    raise ValueError(f"parameters must be float32 or float64, got {parameter.dtype}; use autocast")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step; parameters without a gradient stay as they are, and so do their averages."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self._step_group(params, group)
        return loss

    def _step_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in params:
            state = self.state[parameter]
            if not state:
                fill = torch.zeros_like if group["square_avg_init"] == "zeros" else torch.ones_like
                state["square_avg"] = fill(parameter, memory_format=torch.preserve_format)
                if group["momentum"] > 0:
                    state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        gradients: list[Tensor] | tuple[Tensor, ...] = [parameter.grad for parameter in params]  # type: ignore[misc]
        if group["weight_decay"] > 0:
            gradients = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
        squares = [self.state[parameter]["square_avg"] for parameter in params]
        torch._foreach_mul_(squares, group["rho"])
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["rho"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        if group["momentum"] > 0:
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, gradients, roots, value=group["lr"])
            torch._foreach_sub_(params, buffers)
        else:
            torch._foreach_addcdiv_(params, gradients, roots, value=-group["lr"])
