"""Channel counts of networks made narrower or wider than published."""


def scaled_channels(channels: int, width: float) -> int:
    """Return `channels` times `width` as a multiple of 8, at least 8; published multiples of 8 stay as they are at 1.

    Raises:
        ValueError: a width that is not positive.
    """
    if width <= 0:
        raise ValueError(f"width must be above 0, got {width}")
    return max(8, round(width * channels / 8) * 8)
