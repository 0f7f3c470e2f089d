"""The table of displacements: where the alignment looks (§3), and how far that is at most."""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from training.lsts.config import OffsetsConfig
from training.lsts.sampling import Window

MARGIN = 0.5
"""Cells that offsets may move, in any direction, before a training step has to know about it."""

LAG = 8
"""Age of what the host knows of a table on a device, forward passes of alignments; a training step has one or two."""

EDGE = 1e-3
"""Cells that an offset keeps from its window's last column and row: its right corner has to be inside."""

DEAD = 1e-3
"""Mean share of a location below which it is called dead."""


def initial_offsets(config: OffsetsConfig) -> Tensor:
    """Return the table (K,2) before training, x and y in cells, on the host.

    A grid counts x in the outer loop; normal draws come from a generator of their own, and stay within the clamp.
    """
    if config.init == "grid":
        assert config.radius is not None  # by the config's validator
        side = torch.arange(-config.radius, config.radius + 1, dtype=torch.float32, device="cpu")
        table = torch.cartesian_prod(side, side)
    else:
        assert config.count is not None
        assert config.sigma is not None
        generator = torch.Generator().manual_seed(config.seed)
        table = config.sigma * torch.randn(config.count, 2, generator=generator, device="cpu")
    return table.clamp(-config.clamp, config.clamp)


def touched_shifts(table_K2: Tensor) -> int:
    """Return |D|: how many whole shifts have a share in some location (of a table on the host)."""
    shifts = set()
    for x, y in table_K2.tolist():
        shifts |= {(i, j) for i in {math.floor(x), math.ceil(x)} for j in {math.floor(y), math.ceil(y)}}
    return len(shifts)


class Offsets(nn.Module):
    """K displacements in feature cells, the same for every cell, and for SRFU and DFA.

    What whole shifts they touch decides the shapes of the alignment's products, so the host has to know it. While
    training on a CUDA device it learns it from copies that are some passes old, and does not wait for the device. Until
    then offsets are kept within the window that it knows, which has a margin, so that every result is exact; and since
    the age of the copies is fixed, all ranks know the same.

    Call `clamp_` after each step of the optimizer. `refresh` is called by each forward pass of an `Alignment`, except
    in compiled code, where it has to be called before.

    Args:
        config: K, the first values, whether they are trained.
    """

    def __init__(self, config: OffsetsConfig) -> None:
        super().__init__()
        table = initial_offsets(config)
        self.clamp = config.clamp
        self.table = nn.Parameter(torch.empty(table.shape), requires_grad=config.learned)
        with torch.no_grad():
            self.table.copy_(table)
        extent = _extent(table)
        self._exact = self._window(extent, 0.0)
        self._wide = self._window(extent, MARGIN)
        self._forget()
        self.register_load_state_dict_post_hook(_forget_after_loading)

    # --- what the host knows --------------------------------------------------------------------

    def _window(self, extent: Tensor, margin: float) -> Window | None:
        """Return the window of a table; None of one that is not finite, as the loss will soon say."""
        x0, y0, x1, y1 = extent.tolist()
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            return None
        bounds = [self._span(low, high, margin) for low, high in ((x0, x1), (y0, y1))]
        return Window(bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1])

    def _span(self, low: float, high: float, margin: float) -> tuple[int, int]:
        if not margin:
            return min(math.floor(low), 0), max(math.ceil(high), 0)
        # No further than the clamp, unless the table is. A whole offset needs the corner to its right as well.
        low = min(low, max(low - margin, -self.clamp))
        high = max(high, min(high + margin, self.clamp))
        return min(math.floor(low), 0), max(math.floor(high) + 1, 0)

    def _forget(self) -> None:
        """The table was replaced: the next `refresh` reads it, and waits for that."""
        self._seen = -1
        """Version of the table that `_exact` is of."""
        self._followed = False
        """Whether `_wide` is of this table."""
        self._copies: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        """Extents on their way to the host, the oldest first."""

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "Offsets":
        super()._apply(*args, **kwargs)
        self._forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Events can be neither copied nor sent.
        return {**self.__dict__, "_copies": deque(), "_followed": False, "_seen": -1}

    def _learning(self) -> bool:
        return self.table.requires_grad and torch.is_grad_enabled()

    def refresh(self) -> None:
        """Let the host learn how far the table reaches.

        The host waits for the device only in evaluation, when the table has changed, and in the first training pass
        after the table was loaded or moved.
        """
        if self.table.is_meta:
            return
        if not self.table.is_cuda:
            # Reading is cheap, and version counters miss the steps of fused optimizers.
            extent = _extent(self.table)
            self._exact = self._window(extent, 0.0) or self._exact
            self._wide = self._window(extent, MARGIN) or self._wide
        elif not self._learning():
            # A table that was made in inference mode has no version: it is read each time.
            version = None if self.table.is_inference() else self.table._version
            if version is None or self._seen != version:
                self._exact = self._window(_extent(self.table), 0.0) or self._exact
                self._seen = -1 if version is None else version
        else:
            self._seen = -1
            if self._followed:
                self._follow()
            else:
                self._wide = self._window(_extent(self.table), MARGIN) or self._wide
                self._followed = True

    def _follow(self) -> None:
        """Send for the table's extent, and take the one that was sent for `LAG` passes ago."""
        if len(self._copies) < LAG:
            host = torch.empty(4, dtype=torch.float32, pin_memory=True)
        else:
            host, arrived = self._copies.popleft()
            arrived.synchronize()  # long past
            self._wide = self._window(host, MARGIN) or self._wide
        host.copy_(_extent(self.table), non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._copies.append((host, arrived))

    @property
    def window(self) -> Window:
        """Shifts that the locations can touch: all that have a share, while learning with a margin around them."""
        window = self._wide if self._learning() else self._exact
        assert window is not None  # the first table is finite
        return window

    # --- the table ------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """K."""
        return self.table.shape[0]

    def forward(self) -> Tensor:
        """Return the table (K,2), within the window."""
        if not self._learning():
            return self.table
        low, high = self._bounds(self.window)
        return torch.stack([self.table[:, axis].clamp(low[axis], high[axis]) for axis in (0, 1)], dim=1)

    @staticmethod
    def _bounds(window: Window) -> tuple[tuple[float, float], tuple[float, float]]:
        return (window.x0, window.y0), (window.x1 - EDGE, window.y1 - EDGE)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring offsets back that a step took beyond the clamp, or out of the window that the host knows."""
        low, high = (-self.clamp, -self.clamp), (self.clamp, self.clamp)
        if self.table.is_cuda and self._followed and self._wide is not None:
            window_low, window_high = self._bounds(self._wide)
            low = (max(low[0], window_low[0]), max(low[1], window_low[1]))
            high = (min(high[0], window_high[0]), min(high[1], window_high[1]))
        for axis in (0, 1):
            self.table[:, axis].clamp_(low[axis], high[axis])

    # --- statistics -----------------------------------------------------------------------------

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """Return scalars on the device: mean |x|, mean |y| and the largest of both, cells."""
        size = self.table.abs()
        return {"mean_x": size[:, 0].mean(), "mean_y": size[:, 1].mean(), "max": size.max()}

    @torch.no_grad()
    def twins(self, distance: float = 0.05) -> Tensor:
        """Return which locations (K,) lie within `distance` cells of an earlier one, and add nothing to it."""
        apart = torch.cdist(self.table, self.table)
        return ((apart < distance) & torch.ones_like(apart, dtype=torch.bool).tril(-1)).any(1)


def _forget_after_loading(offsets: Offsets, _keys: object) -> None:
    offsets._forget()


def usage(share_NKHW: Tensor) -> Tensor:
    """Return the mean share (K,) of each location, from S of one or more frames."""
    return share_NKHW.detach().mean(dim=(0, 2, 3))


def dead(usage_K: Tensor, threshold: float = DEAD) -> Tensor:
    """Return which locations (K,) are as good as never used."""
    return usage_K < threshold


def _extent(table: Tensor) -> Tensor:
    """Return least x and y, largest x and y: (4,) fp32."""
    low, high = table.detach().float().aminmax(dim=0)
    return torch.cat([low, high])
