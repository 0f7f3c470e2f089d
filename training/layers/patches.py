"""Patches: where they may lie, and cutting them out of frames without a loop.

A position is the top left corner of a square window, `(vertical, horizontal)` in pixels. Suffixes:
N frames (any mix of batch and time), C channels, H height, W width, P patch side.
"""

import torch
from torch import Tensor

from training.layers.seeded import seeded_integers


def lattice(n: int) -> Tensor:
    """Return the fractions of an n×n action grid, (n·n, 2) float32, first component vertical.

    Row-major: action k is `(k div n, k mod n) / (n-1)`, so both borders are reachable.

    Raises:
        ValueError: n below 2 (one point has no two borders).
    """
    _check_grid(n)
    k = torch.arange(n * n)
    return torch.stack((k // n, k % n), dim=-1) / (n - 1)


def origins_from_actions(action: Tensor, n: int, size: int, patch: int) -> Tensor:
    """Return crop origins (..., 2) int64 of lattice actions (...,) int64.

    Origin = floor(fraction · (size - patch)), computed in integers: with rounded fractions some lattice
    points land a pixel low (7×7 points in bfloat16 or float64, 13×13 in float32).

    Args:
        action: index into `lattice(n)`.
        n: points per side of the lattice.
        size: side of the frame, pixels.
        patch: side of the crop, pixels.

    Raises:
        ValueError: the patch does not fit, n below 2, or the actions are not integers.
    """
    _check_grid(n)
    _check_fit(size, patch)
    if action.dtype.is_floating_point or action.dtype == torch.bool:
        raise ValueError(f"actions must be integers, got {action.dtype}")
    action = action.long()
    cell = torch.stack((action // n, action % n), dim=-1)
    return cell * (size - patch) // (n - 1)


def origins_from_fractions(fraction: Tensor, size: int, patch: int) -> Tensor:
    """Return crop origins int64 of continuous positions in [0, 1], same shape (..., 2).

    Floor as in `origins_from_actions`; 0 and 1 are the borders, values outside are clamped to them.
    """
    _check_fit(size, patch)
    return (fraction.float().clamp(0, 1) * (size - patch)).floor().long()


def center_origins(shape: tuple[int, ...], size: int, patch: int, device: torch.device | str | None = None) -> Tensor:
    """Return origins (*shape, 2) int64 of the centred crop."""
    _check_fit(size, patch)
    return torch.full((*shape, 2), (size - patch) // 2, dtype=torch.int64, device=device)


def random_origins(
    shape: tuple[int, ...],
    size: int,
    patch: int,
    *,
    generator: torch.Generator | None = None,
    seed_B: Tensor | None = None,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw origins (*shape, 2) int64, uniform over the integers 0 … size - patch (both included).

    Args:
        shape: leading shape; with `seed_B` its first axis must be the batch.
        size: side of the frame, pixels.
        patch: side of the crop, pixels.
        generator: torch generator to draw from; it must live on `device`.
        seed_B: (B,) int64 per-clip seeds instead of a generator. The draw of a clip then depends on
            its own seed and `stream` only, whatever the batch, rank or device it is in.
        stream: distinguishes several draws of one step from the same seeds.
        device: where the result lives; that of `seed_B` when given.

    Raises:
        ValueError: the patch does not fit, both sources given, or a shape that `seed_B` contradicts.
    """
    _check_fit(size, patch)
    if seed_B is None:
        return torch.randint(0, size - patch + 1, (*shape, 2), generator=generator, device=device)
    if generator is not None:
        raise ValueError("give either generator or seed_B, not both")
    if not shape or shape[0] != seed_B.shape[0]:
        raise ValueError(f"first axis of shape {shape} must be the batch of seed_B, {seed_B.shape[0]}")
    return seeded_integers(seed_B, (*shape[1:], 2), size - patch + 1, stream=stream)


def crop_patches(frames_NCHW: Tensor, origin_N2: Tensor, patch: int) -> Tensor:
    """Cut one exact P×P window out of each frame, (N,C,P,P), by a single gather.

    No resampling, no loop over N, no host synchronisation; gradients flow to the frames. The result
    has the memory format of the input (channels_last stays channels_last).

    Args:
        frames_NCHW: any dtype.
        origin_N2: integer top left corners on the same device.
        patch: P, pixels.

    Raises:
        ValueError: shapes that do not belong together, a patch larger than the frame, or (on the CPU,
            where looking is free) an origin outside the frame.
    """
    if frames_NCHW.dim() != 4 or origin_N2.shape != (frames_NCHW.shape[0], 2):
        raise ValueError(
            f"need frames (N,C,H,W) and origins (N,2), got {tuple(frames_NCHW.shape)} and {tuple(origin_N2.shape)}"
        )
    if origin_N2.dtype.is_floating_point:
        raise ValueError(f"origins must be integers, got {origin_N2.dtype}; see origins_from_fractions")
    height, width = frames_NCHW.shape[2:]
    _check_fit(min(height, width), patch)
    origin = origin_N2.long()
    _check_inside(origin, height - patch, width - patch)
    channels_last = _is_channels_last(frames_NCHW)
    if frames_NCHW.requires_grad and torch.is_grad_enabled():
        return _gather_pixels(frames_NCHW, origin, patch, channels_last)
    return _gather_windows(frames_NCHW, origin, patch, channels_last)


def _gather_windows(frames: Tensor, origin: Tensor, patch: int, channels_last: bool) -> Tensor:
    """Pick one window per frame from the view of all windows: rows are copied whole, 1.5 to 4 times faster.

    Its gradient would be a tensor of all windows of all frames, so it serves where none is needed.
    """
    frame = torch.arange(frames.shape[0], device=origin.device)
    windows = frames.unfold(2, patch, 1).unfold(3, patch, 1)
    if channels_last:
        picked = windows.permute(0, 2, 3, 4, 5, 1)[frame, origin[:, 0], origin[:, 1]]
        return picked.permute(0, 3, 1, 2)
    return windows[frame, :, origin[:, 0], origin[:, 1]]


def _gather_pixels(frames: Tensor, origin: Tensor, patch: int, channels_last: bool) -> Tensor:
    """Pick pixel by pixel; the gradient is a scatter into a tensor of the frames' size."""
    count, channels, height, width = frames.shape
    step = torch.arange(patch, device=origin.device)
    row = (origin[:, 0, None] + step)[:, :, None]
    column = (origin[:, 1, None] + step)[:, None, :]
    flat = (row * width + column).view(count, patch * patch)
    if channels_last:
        pixels = frames.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        picked = pixels.gather(1, flat[:, :, None].expand(-1, -1, channels))
        return picked.view(count, patch, patch, channels).permute(0, 3, 1, 2)
    pixels = frames.reshape(count, channels, height * width)
    picked = pixels.gather(2, flat[:, None, :].expand(-1, channels, -1))
    return picked.view(count, channels, patch, patch)


def _is_channels_last(frames: Tensor) -> bool:
    return not frames.is_contiguous() and frames.is_contiguous(memory_format=torch.channels_last)


def _check_inside(origin: Tensor, last_row: int, last_column: int) -> None:
    if origin.device.type == "meta":
        return
    inside = ((origin >= 0) & (origin <= origin.new_tensor([last_row, last_column]))).all()
    if origin.device.type == "cpu":
        if not inside:
            raise ValueError(
                f"an origin lies outside the frame: allowed are rows 0…{last_row} and columns 0…{last_column}, "
                f"got {origin.amin(0).tolist()} … {origin.amax(0).tolist()}"
            )
    else:
        # A device-side assertion: reading the flag here would wait for the device.
        torch._assert_async(inside, "an origin lies outside the frame")


def _check_grid(n: int) -> None:
    if n < 2:
        raise ValueError(f"the action grid needs at least 2 points per side, got {n}")


def _check_fit(size: int, patch: int) -> None:
    if not 1 <= patch <= size:
        raise ValueError(f"a patch of {patch} px does not fit into frames of {size} px")
