"""What networks over clips ask of their input before the first layer."""

from torch import Tensor


def clip_size(video_BCTHW: Tensor, channels: int) -> tuple[int, int, int]:
    """Return frames, height and width of a batch of clips.

    Raises:
        ValueError: not (B,C,T,H,W), or with another number of channels.
    """
    if video_BCTHW.dim() != 5 or video_BCTHW.shape[1] != channels:
        raise ValueError(f"needs clips (B,{channels},T,H,W), got {tuple(video_BCTHW.shape)}")
    frames, height, width = video_BCTHW.shape[2:]
    return frames, height, width


def check_minimum(name: str, size: tuple[int, int, int], minimum: tuple[int, int, int]) -> None:
    """Refuse a clip that is smaller than a network's strides can reduce.

    Args:
        name: of the network, for the message.
        size: frames, height and width of the clip.
        minimum: the least of each.

    Raises:
        ValueError: too few frames or pixels.
    """
    if any(actual < least for actual, least in zip(size, minimum, strict=True)):
        raise ValueError(
            f"{name} needs at least {minimum[0]} frames of {minimum[1]}×{minimum[2]} pixels, "
            f"got {size[0]} of {size[1]}×{size[2]}"
        )
