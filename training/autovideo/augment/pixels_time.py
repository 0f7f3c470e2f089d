"""Whole frames moved along time: an index per clip, and one gather. See `pixels.py` for the rules."""

from typing import Any

import torch
from torch import Tensor

from training.autovideo.augment.draws import Draws


def _taken(video_BCTHW: Tensor, index_BT: Tensor) -> Tensor:
    return video_BCTHW.gather(2, index_BT[:, None, :, None, None].expand_as(video_BCTHW))


def _time(video_BCTHW: Tensor) -> tuple[Tensor, int]:
    """Return the frames' numbers (T,) and how many there are."""
    count = video_BCTHW.shape[2]
    return torch.arange(count, device=video_BCTHW.device), count


def temporal_reverse(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Play backwards."""
    return video_BCTHW.flip(2)


def temporal_jitter(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Take each frame from up to some frames away; the order stays."""
    time_T, count = _time(video_BCTHW)
    moved_BT = (time_T + draw.integers(-config.frames, config.frames, count)).clamp(0, count - 1)
    return _taken(video_BCTHW, moved_BT.sort(dim=1).values)


def temporal_shift(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Move all frames along time; the ends repeat, or time is a circle."""
    time_T, count = _time(video_BCTHW)
    moved_B1 = draw.integers(*config.frames, 1)
    if config.direction != "both":
        moved_B1 = moved_B1 if config.direction == "later" else -moved_B1
    else:
        moved_B1 = torch.where(draw.bernoulli(0.5, 1), moved_B1, -moved_B1)
    index_BT = time_T + moved_B1
    return _taken(video_BCTHW, index_BT % count if config.cyclic else index_BT.clamp(0, count - 1))


def temporal_speed(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Play faster (the last frame is held, or the clip starts again) or slower (a part of the clip)."""
    time_T, count = _time(video_BCTHW)
    speed_B1 = draw.span(config.speed, 1)
    free_B1 = (count - 1) * (1 - speed_B1).clamp_min(0)
    index_BT = (draw.uniform(0, 1, 1) * free_B1 + time_T * speed_B1 + 0.5).floor().long()
    return _taken(video_BCTHW, index_BT % count if config.loop else index_BT.clamp_max(count - 1))


def frame_drop(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Replace lost frames, one at least, by the last one before them; the first is never lost."""
    time_T, count = _time(video_BCTHW)
    certain_B1 = 1 + draw.choice(max(1, count - 1), 1)
    lost_BT = (draw.bernoulli(config.share, count) | (time_T == certain_B1)) & (time_T > 0)
    return _taken(video_BCTHW, torch.where(lost_BT, 0, time_T).cummax(dim=1).values)


def frame_freeze(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Hold one frame for a while; the clip then goes on where it would be."""
    time_T, count = _time(video_BCTHW)
    length_B1 = (draw.span(config.share, 1) * count).round().clamp_min(1)
    start_B1 = (draw.uniform(0, 1, 1) * (count - length_B1).clamp_min(0)).floor().long()
    held_BT = (time_T >= start_B1) & (time_T <= start_B1 + length_B1)
    return _taken(video_BCTHW, torch.where(held_BT, start_B1, time_T.expand_as(held_BT)))


def temporal_shuffle(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Cut into segments and put these in another order; the order inside a segment stays."""
    time_T, count = _time(video_BCTHW)
    segments = min(config.segments, count)
    rank_BS = draw.permutation(segments)
    # The order that there is already is no draw: it is turned by one.
    same_B1 = (rank_BS == torch.arange(segments, device=rank_BS.device)).all(dim=1, keepdim=True)
    rank_BS = torch.where(same_B1, rank_BS.roll(1, 1), rank_BS)
    key_BT = rank_BS[:, time_T * segments // count] * count + time_T
    return _taken(video_BCTHW, key_BT.argsort(dim=1))


def temporal_loop(video_BCTHW: Tensor, config: Any, draw: Draws) -> Tensor:
    """Play forwards up to a frame, then backwards from it."""
    time_T, count = _time(video_BCTHW)
    turn_B1 = (draw.span(config.turn, 1) * (count - 1)).round().long()
    return _taken(video_BCTHW, torch.where(time_T > turn_B1, (2 * turn_B1 - time_T).abs(), time_T))
