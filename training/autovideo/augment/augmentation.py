"""Augmenters in action: a list of `Use` applied to a batch of clips.

What happens to a clip is a function of its seed and of the list alone: not of rank, device, worker, or of the other
clips (only augmenters that mix clips look at a neighbour). Each step draws from a stream of its own, its place in the
list.
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from training.autovideo.augment.augmenter import Augmenter, Composite, augmenter
from training.autovideo.augment.draws import Draws
from training.autovideo.catalogue import configure
from training.autovideo.use import Use
from training.core.config import ConfigError

__all__ = ["Augmentation", "Augmented", "Part", "augment_uint8", "load_operation"]

STREAM = 0xA06
"""Root of the draws made here; hashed, so it keeps clear of the small numbers that systems draw from."""


class Augmented(NamedTuple):
    """A batch on its way through the augmenters."""

    video_BCTHW: Tensor
    """float32, 0…1."""
    target_BK: Tensor | None
    """float; rows of soft targets, or None where nothing may mix clips."""


Part = Callable[[Augmented, Draws, Tensor], Augmented]
"""An augmenter inside a composite: (batch, draws, chosen_B bool) → batch, with only the chosen clips changed."""


def load_operation(path: str, where: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` names.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    module, _, name = path.partition(":")
    try:
        operation = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: operation {path!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(operation):
        raise ConfigError(f"{where}: operation {path!r} is no function")
    return cast(Callable[..., Any], operation)


class _Step:
    """One augmenter, ready to run; a `Part`."""

    def __init__(self, use: Use, where: str) -> None:
        self.name = use.use
        self.primitive: type[Augmenter] = augmenter(use.use, where)
        self.config: Any = configure(use.use, use.settings, where)
        self.operation = load_operation(self.primitive.operation, f"{where} ({use.use})")
        self.parts: tuple[_Step, ...] = ()
        if issubclass(self.primitive, Composite):
            uses = self.primitive.uses(self.config)
            self.primitive.check(self.config, uses)
            self.parts = tuple(_Step(part, f"{where}.{place}") for place, part in enumerate(uses))
        self.mixes: bool = self.primitive.mixes or any(part.mixes for part in self.parts)

    def __call__(self, batch: Augmented, draw: Draws, chosen_B: Tensor) -> Augmented:
        """Change the chosen clips, each with the step's own probability."""
        p = float(getattr(self.config, "p", 1.0))
        if p < 1:
            chosen_B = chosen_B & draw.child(0).bernoulli(p)
        inner = draw.child(1)
        if issubclass(self.primitive, Composite):
            return cast(Augmented, self.operation(batch, self.config, inner, chosen_B, self.parts))
        if self.primitive.mixes:
            return self._mix(batch, inner, chosen_B)
        return Augmented(self._change(batch.video_BCTHW, inner, chosen_B), batch.target_BK)

    def _mix(self, batch: Augmented, draw: Draws, chosen_B: Tensor) -> Augmented:
        if batch.target_BK is None:
            raise ValueError(f"{self.name} mixes clips and their targets: give target_BK, one row of scores per clip")
        if len(batch.video_BCTHW) == 1:
            return batch
        device = batch.video_BCTHW.device
        chosen_B = chosen_B.to(device, non_blocking=True)
        video, target = self.operation(batch.video_BCTHW, self.config, draw.to(device), batch.target_BK)
        video = self._checked(video, batch.video_BCTHW)
        return Augmented(
            torch.where(chosen_B[:, None, None, None, None], video, batch.video_BCTHW),
            torch.where(chosen_B[:, None], target.to(batch.target_BK.dtype), batch.target_BK),
        )

    def _change(self, video_BCTHW: Tensor, draw: Draws, chosen_B: Tensor) -> Tensor:
        device = video_BCTHW.device
        if chosen_B.device.type != "cpu":
            changed = self._run(video_BCTHW, draw)
            return torch.where(chosen_B[:, None, None, None, None], changed, video_BCTHW)
        # The seeds lie on the host, and with them the decision: only these clips are computed.
        row_N = chosen_B.nonzero().flatten()
        if len(row_N) == 0:
            return video_BCTHW
        if len(row_N) == len(chosen_B):
            return self._run(video_BCTHW, draw.to(device))
        draw = draw.rows(row_N).to(device)
        row_N = row_N.to(device, non_blocking=True)
        return video_BCTHW.index_copy(0, row_N, self._run(video_BCTHW.index_select(0, row_N), draw))

    def _run(self, video_BCTHW: Tensor, draw: Draws) -> Tensor:
        if not getattr(self.config, "per_frame", False):
            return self._checked(self.operation(video_BCTHW, self.config, draw), video_BCTHW)
        # Frames become clips of one frame, with seeds of their own: the operation need not know.
        batch, channels, frames, height, width = video_BCTHW.shape
        single = video_BCTHW.transpose(1, 2).reshape(batch * frames, channels, 1, height, width)
        changed = self._checked(self.operation(single, self.config, draw.frames(frames)), single)
        return changed.view(batch, frames, channels, height, width).transpose(1, 2).contiguous()

    def _checked(self, changed: Tensor, video_BCTHW: Tensor) -> Tensor:
        if changed.shape != video_BCTHW.shape or changed.dtype != video_BCTHW.dtype:
            raise ValueError(
                f"{self.name}: its operation {self.primitive.operation} made {tuple(changed.shape)} {changed.dtype} of "
                f"{tuple(video_BCTHW.shape)} {video_BCTHW.dtype}; an augmenter keeps both"
            )
        return changed.clamp(0, 1)


class Augmentation:
    """A list of augmenters, applied one after the other. Holds no state; call it as often as you like."""

    def __init__(self, uses: Sequence[Use]) -> None:
        """Resolve the augmenters.

        Raises:
            ConfigError: an unknown one, one of another kind, or settings that are not valid.
        """
        self._steps = tuple(_Step(use, f"augmenter {place}") for place, use in enumerate(uses))

    @property
    def mixes(self) -> bool:
        """Whether targets have to be given."""
        return any(step.mixes for step in self._steps)

    @torch.no_grad()
    def __call__(
        self, video_BCTHW: Tensor, seed_B: Tensor, target_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Augment a batch; the arguments are not changed.

        Args:
            video_BCTHW: float32, 0…1, C = 3.
            seed_B: int64 seeds of the clips. On the device of the video nothing waits for it, and every step is
                computed for all clips, of which some are then taken. On the host only the clips that a step changes
                are computed, with the same result: worth it with combiners on an accelerator.
            target_BK: soft targets, needed where an augmenter mixes clips.

        Returns:
            Video and targets of the same shapes and types.

        Raises:
            ValueError: other shapes or types, or no targets where clips are mixed.
        """
        if video_BCTHW.dim() != 5 or video_BCTHW.shape[1] != 3 or video_BCTHW.dtype != torch.float32:
            raise ValueError(f"clips must be float32 (B,3,T,H,W), got {tuple(video_BCTHW.shape)} {video_BCTHW.dtype}")
        if seed_B.shape != video_BCTHW.shape[:1] or seed_B.dtype != torch.int64:
            raise ValueError(f"{len(video_BCTHW)} clips need as many int64 seeds, got {seed_B.shape} {seed_B.dtype}")
        if self.mixes and target_BK is None:
            names = ", ".join(step.name for step in self._steps if step.mixes)
            raise ValueError(f"{names}: clips and their targets are mixed; give target_BK, one row of scores per clip")
        if target_BK is not None and (target_BK.dim() != 2 or len(target_BK) != len(video_BCTHW)):
            raise ValueError(f"targets must be ({len(video_BCTHW)}, classes), got {tuple(target_BK.shape)}")
        batch = Augmented(video_BCTHW, target_BK)
        everyone_B = torch.ones_like(seed_B, dtype=torch.bool)
        root = Draws(seed_B, STREAM)
        # Mixed precision of the surrounding code must not round pixels.
        kind = video_BCTHW.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            for place, step in enumerate(self._steps):
                batch = step(batch, root.child(place), everyone_B)
        return batch.video_BCTHW, batch.target_BK


def augment_uint8(clip: Tensor, uses: Sequence[Use] | Augmentation, seeds: int | Sequence[int] | Tensor) -> Tensor:
    """Augment stored clips.

    Args:
        clip: uint8 (C,T,H,W), or (B,C,T,H,W).
        uses: augmenters, or an `Augmentation`; none that mixes clips.
        seeds: one per clip.

    Returns:
        The same shape and type.

    Raises:
        ValueError: another type or shape, another number of seeds, or clips are to be mixed.
    """
    if clip.dtype != torch.uint8 or clip.dim() not in (4, 5):
        raise ValueError(f"a clip must be uint8 (C,T,H,W) or (B,C,T,H,W), got {tuple(clip.shape)} {clip.dtype}")
    video_BCTHW = (clip if clip.dim() == 5 else clip[None]).float() / 255
    seed_B = torch.as_tensor(seeds, dtype=torch.int64).reshape(-1).to(clip.device)
    steps = uses if isinstance(uses, Augmentation) else Augmentation(uses)
    changed, _ = steps(video_BCTHW, seed_B)
    return (changed * 255).round().to(torch.uint8).view(clip.shape)
