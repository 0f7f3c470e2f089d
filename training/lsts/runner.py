"""Goes through a video: which frames are keys, what is remembered, and what is computed on which frame (§8).

The state of a video is `VideoState` and nothing else; a new video, and with `scene_cut` a new shot, starts with an
empty one. The high-level network is called for key frames only, and all other frames of a block go through the light
branch in one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.core.detections import Detections, FrameBatch, VideoAnswer
from training.core.frame_transform import stored_boxes
from training.core.system import FrameBoxes, RawBatch
from training.lsts.config import MethodConfig
from training.lsts.cost import FrameCosts
from training.lsts.fusion import AlignedKey
from training.lsts.heads import Boxes
from training.lsts.model import LSTS, displacements
from training.lsts.schedule import Block, Schedule

__all__ = ["LSTSRunner", "VideoState"]

THUMBNAIL = 16
"""Side of the pictures that tell scene cuts, cells."""


SINGLES_AT_ONCE = 10
"""Frames in one batch of the single-frame detector."""


@dataclass
class VideoState:
    """What is known of a video so far."""

    memory: Tensor | None = None
    """(1,C,H,W); None at the start of a video and of a shot."""
    prepared: AlignedKey | None = None
    """What the alignment needs of the memory."""
    key: int = -1
    """Number of the key frame that the memory comes from."""
    boxes: Boxes | None = None
    """Those found on it; batch of one."""
    objects: FrameBoxes | None = None
    """True objects of it, for `alignment: truth`."""


class LSTSRunner:
    """One video through one method; implements `training.core.detections.VideoRunner`."""

    def __init__(
        self,
        model: LSTS,
        method: MethodConfig,
        prepare: Callable[[RawBatch], FrameBatch],
        costs: Callable[[int, int], FrameCosts],
    ) -> None:
        """Start a video.

        Args:
            model: in eval mode; it has the parts that the method needs.
            method: may differ from the one that the model was trained with (intervals, reused boxes).
            prepare: makes the network input of frames.
            costs: of frames of a height and width, pixels of the input.

        Raises:
            ValueError: the model lacks a part.
        """
        if (method.key == "srfu") > (model.srfu is not None) or (method.non_key == "dfa") > (model.dfa is not None):
            raise ValueError("the method fuses features, and the model was trained without that")
        self.state = VideoState()
        self._model = model
        self._method = method
        self._prepare = prepare
        self._costs = costs
        self._schedule = Schedule(method.interval, method.schedule)
        self._waiting: RawBatch | None = None
        """Frames whose block is not complete."""
        self._count = 0
        """Frames that came so far; inside, frames are numbered as they come."""
        self._numbers: list[int] = []
        """What they are called outside."""
        self._thumbnail: Tensor | None = None
        self._found: list[Detections] = []
        self._frames: list[int] = []
        self._keys: list[int] = []
        self._cuts: list[int] = []
        self._gmac = 0.0

    def push(self, block: RawBatch) -> None:
        """Take the next frames, a batch of one video."""
        assert block.number_BT is not None
        numbers = block.number_BT[0].tolist()
        cuts = self._find_cuts(block)
        self._cuts += [numbers[cut - self._count] for cut in cuts]
        self._numbers += numbers
        self._count += len(numbers)
        self._waiting = block if self._waiting is None else _joined(self._waiting, block)
        self._run(self._schedule.push(len(numbers), tuple(cuts)))

    def finish(self) -> VideoAnswer:
        """Answer what is left."""
        self._run(self._schedule.finish())
        return VideoAnswer(
            detections=Detections.join(self._found),
            frames=tuple(self._frames),
            key_frames=tuple(self._keys),
            gmac=self._gmac,
            extras={"cuts": np.array(self._cuts, dtype=np.int64)},
        )

    def _run(self, blocks: list[Block]) -> None:
        if self._method.key == "plain" and self._method.interval == 1:
            # Frames that have nothing to do with one another: as many at once as a block of LSTS has.
            numbers = [block.key for block in blocks]
            for start in range(0, len(numbers), SINGLES_AT_ONCE):
                self._answer_singles(numbers[start : start + SINGLES_AT_ONCE])
            return
        for block in blocks:
            if block.first:
                self.state = VideoState()
            self._answer(block, self._take(block.length))

    def _take(self, count: int) -> FrameBatch:
        """Return the next frames that wait, prepared; they wait no more."""
        assert self._waiting is not None
        batch = self._prepare(_cut_out(self._waiting, slice(0, count)))
        self._waiting = _cut_out(self._waiting, slice(count, None))
        return batch

    def _answer_singles(self, numbers: list[int]) -> None:
        batch = self._take(len(numbers))
        image_T3HW = batch.video_BCTHW[0].transpose(0, 1)
        features = self._model.high(self._model.low(image_T3HW))
        self._report(self._model.detect(features, batch.size_B2.expand(len(numbers), -1)), numbers, batch)
        self._keys += [self._numbers[number] for number in numbers]
        self._gmac += self._costs(*image_T3HW.shape[2:]).first * len(numbers)

    def _answer(self, block: Block, batch: FrameBatch) -> None:
        """Run one block, or one piece of a block whose key was run before."""
        model, method, state = self._model, self._method, self.state
        image_T3HW = batch.video_BCTHW[0].transpose(0, 1)
        size_T2 = batch.size_B2.expand(len(block.frames), -1)
        costs = self._costs(*image_T3HW.shape[2:])
        fresh = block.key != state.key
        others = block.others
        light = method.non_key == "dfa" and bool(others)
        run = [*([block.key] if fresh else []), *(others if light else [])]
        low = dict(zip(run, model.low(image_T3HW[self._places(block, run)]).split(1), strict=True)) if run else {}
        if fresh:
            self._key_frame(block, low[block.key], batch, size_T2[:1], costs)
        assert state.boxes is not None
        if block.key in block.frames:
            self._report(state.boxes, [block.key], batch)
        if light:
            assert state.prepared is not None
            displacement = self._displacement(block, others, batch)
            features, _ = model.aggregate(torch.cat([low[number] for number in others]), state.prepared, displacement)
            self._report(model.detect(features, size_T2[: len(others)]), others, batch)
            self._gmac += costs.other * len(others)
        elif others:
            self._report(Boxes(*(value.expand(len(others), *value.shape[1:]) for value in state.boxes)), others, batch)

    def _key_frame(self, block: Block, low: Tensor, batch: FrameBatch, size_12: Tensor, costs: FrameCosts) -> None:
        model, method, state = self._model, self._method, self.state
        own = model.high(low)
        memory = state.memory if method.key == "srfu" else None
        displacement = None if memory is None else self._displacement(block, [block.key], batch)
        fused = model.remember(own, memory, displacement_N2HW=displacement)
        self._gmac += costs.first if memory is None else costs.key
        state.memory = model.updated(own, fused)
        state.prepared = None
        if method.non_key == "dfa" and method.interval > 1:
            state.prepared = model.prepare(state.memory)
            self._gmac += costs.prepare
        state.boxes = model.detect(fused, size_12)
        state.key = block.key
        self._keys.append(self._numbers[block.key])
        if batch.boxes is not None and method.alignment == "truth":
            state.objects = _objects(batch.boxes, [block.key - block.start])

    def _displacement(self, block: Block, numbers: list[int], batch: FrameBatch) -> Tensor | None:
        """Return where the objects of frames were in the memory's frame (`alignment: truth`)."""
        if self._method.alignment != "truth":
            return None
        if batch.boxes is None or self.state.objects is None or self.state.memory is None:
            raise ValueError("alignment `truth` needs the true objects of all frames: it is an oracle for evaluations")
        here = _objects(batch.boxes, self._places(block, numbers))
        there = self.state.objects
        return displacements(
            here.box_BTN4[:, 0],
            here.track_BTN[:, 0],
            there.box_BTN4[:, 0].expand(len(numbers), -1, -1),
            there.track_BTN[:, 0].expand(len(numbers), -1),
            (self.state.memory.shape[2], self.state.memory.shape[3]),
            self._model.config.backbone.stride,
        )

    @staticmethod
    def _places(block: Block, numbers: list[int]) -> list[int]:
        return [number - block.start for number in numbers]

    def _report(self, boxes: Boxes, numbers: list[int], batch: FrameBatch) -> None:
        """Note the boxes of frames, in pixels of the stored clip."""
        stored = stored_boxes(boxes.box_NM4.flatten(0, 1), batch, 0).view(boxes.box_NM4.shape)
        valid, box = boxes.valid_NM.cpu().numpy(), stored.float().cpu().numpy()
        score, label = boxes.score_NM.float().cpu().numpy(), boxes.label_NM.cpu().numpy()
        for row, number in enumerate(numbers):
            keep = valid[row]
            name = self._numbers[number]
            self._frames.append(name)
            frame = np.full(int(keep.sum()), name, dtype=np.int64)
            self._found.append(Detections(frame, box[row][keep], score[row][keep], label[row][keep].astype(np.int64)))

    def _find_cuts(self, block: RawBatch) -> list[int]:
        """Return which of the new frames start a new shot."""
        if self._method.scene_cut is None:
            return []
        height, width = block.sizes[0]
        pixels = block.frames_BTHWC[0, :, :height, :width].float().mean(-1)
        thumbnails = F.adaptive_avg_pool2d(pixels[:, None], THUMBNAIL)
        before = thumbnails[:1] if self._thumbnail is None else self._thumbnail
        difference = (thumbnails - torch.cat([before, thumbnails[:-1]])).abs().mean((1, 2, 3))
        self._thumbnail = thumbnails[-1:]
        return [self._count + int(place) for place in (difference > self._method.scene_cut).nonzero()[:, 0].tolist()]


def _objects(boxes: FrameBoxes, places: list[int]) -> FrameBoxes:
    """Return the objects of some frames of one video, a row each."""
    return FrameBoxes(
        labelled_BT=boxes.labelled_BT[0, places, None],
        box_BTN4=boxes.box_BTN4[0, places, None],
        label_BTN=boxes.label_BTN[0, places, None],
        track_BTN=boxes.track_BTN[0, places, None],
    )


def _cut_out(block: RawBatch, frames: slice) -> RawBatch:
    """Return some frames of a block."""
    assert block.number_BT is not None
    boxes = block.boxes
    if boxes is not None:
        boxes = FrameBoxes(
            boxes.labelled_BT[:, frames],
            boxes.box_BTN4[:, frames],
            boxes.label_BTN[:, frames],
            boxes.track_BTN[:, frames],
        )
    return replace(block, frames_BTHWC=block.frames_BTHWC[:, frames], number_BT=block.number_BT[:, frames], boxes=boxes)


def _joined(before: RawBatch, after: RawBatch) -> RawBatch:
    """Return the frames of two blocks of a video as one."""
    assert before.number_BT is not None
    assert after.number_BT is not None
    boxes = None
    if before.boxes is not None and after.boxes is not None:
        most = max(before.boxes.label_BTN.shape[2], after.boxes.label_BTN.shape[2])
        parts = [_widened(part, most) for part in (before.boxes, after.boxes)]
        columns = zip(*((p.labelled_BT, p.box_BTN4, p.label_BTN, p.track_BTN) for p in parts), strict=True)
        boxes = FrameBoxes(*(torch.cat(column, dim=1) for column in columns))
    return replace(
        after,
        frames_BTHWC=torch.cat([before.frames_BTHWC, after.frames_BTHWC], dim=1),
        number_BT=torch.cat([before.number_BT, after.number_BT], dim=1),
        boxes=boxes,
    )


def _widened(boxes: FrameBoxes, most: int) -> FrameBoxes:
    more = most - boxes.label_BTN.shape[2]
    return FrameBoxes(
        boxes.labelled_BT,
        F.pad(boxes.box_BTN4, (0, 0, 0, more)),
        F.pad(boxes.label_BTN, (0, more), value=-1),
        F.pad(boxes.track_BTN, (0, more), value=-1),
    )
