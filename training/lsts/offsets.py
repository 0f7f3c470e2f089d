"""The table of displacements: where the alignment looks (§3), and how far that is at most."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from training.lsts.config import OffsetsConfig
from training.lsts.sampling import Window

MARGIN = 0.5
"""Cells that offsets may move, in any direction, before a training step has to know about it."""

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


class _Copy(NamedTuple):
    """Extent of a table on its way to the host."""

    extent: Tensor
    done: torch.cuda.Event


class Offsets(nn.Module):
    """K displacements in feature cells, the same for every cell, and for SRFU and DFA.

    What whole shifts they touch decides the shapes of the alignment's products, so the host has to know it. On a CUDA
    device it learns it without waiting: `refresh` starts a copy, and takes its result in some later step. Until then
    offsets are kept within the window that the host knows, which has a margin, so that every result is exact.

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
        self._pending: _Copy | None = None
        self._see(_extent(table).tolist())
        self.register_load_state_dict_post_hook(_forget_after_loading)

    # --- what the host knows --------------------------------------------------------------------

    def _see(self, extent: list[float]) -> None:
        """Take note of the least and largest x and y."""
        x0, y0, x1, y1 = extent
        bounds = [(min(math.floor(low), 0), max(math.ceil(high), 0)) for low, high in ((x0, x1), (y0, y1))]
        self._exact = Window(bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1])
        bounds = [self._with_margin(low, high) for low, high in ((x0, x1), (y0, y1))]
        self._wide = Window(bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1])
        self._version = self.table._version
        self._followed = self._learning()

    def _with_margin(self, low: float, high: float) -> tuple[int, int]:
        # No further than the clamp, unless the table is.
        low = min(low, max(low - MARGIN, -self.clamp))
        high = max(high, min(high + MARGIN, self.clamp))
        return min(math.floor(low), 0), max(math.floor(high) + 1, 0)

    def _forget(self) -> None:
        """The table was replaced: the next `refresh` reads it, and waits for that."""
        self._version, self._followed, self._pending = -1, False, None

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> "Offsets":
        super()._apply(*args, **kwargs)
        self._forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # An event can be neither copied nor sent.
        return {**self.__dict__, "_pending": None}

    def _learning(self) -> bool:
        return self.table.requires_grad and torch.is_grad_enabled()

    def refresh(self) -> None:
        """Let the host learn how far the table reaches.

        The host waits for the device only in evaluation, when the table has changed, and in the first training step
        after that, or after the table was loaded or moved.
        """
        if self.table.is_meta:
            return
        learning = self._learning()
        if not self.table.is_cuda:
            # Reading is cheap, and version counters miss the steps of fused optimizers.
            self._see(_extent(self.table).tolist())
        elif learning != self._followed or (not learning and self._version != self.table._version):
            self._pending = None
            self._see(_extent(self.table).tolist())
        elif learning:
            if self._pending is not None and self._pending.done.query():
                self._see(self._pending.extent.tolist())
                self._pending = None
            if self._pending is None:
                host = torch.empty(4, dtype=torch.float32, pin_memory=True)
                host.copy_(_extent(self.table), non_blocking=True)
                done = torch.cuda.Event()
                done.record()
                self._pending = _Copy(host, done)

    @property
    def window(self) -> Window:
        """Shifts that the locations can touch: all that have a share, while learning with a margin around them."""
        return self._wide if self._learning() else self._exact

    # --- the table ------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """K."""
        return self.table.shape[0]

    def forward(self) -> Tensor:
        """Return the table (K,2), within the window."""
        if not self._learning():
            return self.table
        low, high = self._bounds(self._wide)
        return torch.stack([self.table[:, axis].clamp(low[axis], high[axis]) for axis in (0, 1)], dim=1)

    @staticmethod
    def _bounds(window: Window) -> tuple[tuple[float, float], tuple[float, float]]:
        return (window.x0, window.y0), (window.x1 - EDGE, window.y1 - EDGE)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring offsets back that a step took beyond the clamp, or out of the window that the host knows."""
        low, high = (-self.clamp, -self.clamp), (self.clamp, self.clamp)
        if self.table.is_cuda and self._followed:
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
