"""Inference over videos (§8; acceptance tests 11 to 15): what runs on which frame, state, causality, batches."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.core.cost import _MORE_FORMULAS
from training.core.detections import VideoAnswer
from training.core.system import RawBatch
from training.lsts.config import MethodConfig
from training.lsts.runner import LSTSRunner
from training.lsts.system import SINGLE, LSTSSystem, average_gmac

Method = Callable[..., MethodConfig]
Make = Callable[..., LSTSSystem]
Video = Callable[..., RawBatch]
Cut = Callable[..., RawBatch]


class Calls:
    """Counts frames that reach parts of a model."""

    def __init__(self, system: LSTSSystem) -> None:
        self.high = 0
        self.low = 0
        self.light: list[int] = []
        backbone = system.model.backbone
        backbone.layer4[0].conv1.register_forward_hook(lambda module, inputs, output: self._count("high", inputs[0]))
        backbone.conv1.register_forward_hook(lambda module, inputs, output: self._count("low", inputs[0]))
        if system.model.low2high is not None:
            system.model.low2high.register_forward_hook(
                lambda module, inputs, output: None if inputs[0].is_meta else self.light.append(inputs[0].shape[0])
            )

    def _count(self, name: str, value: torch.Tensor) -> None:
        if not value.is_meta:  # what counts costs runs copies of the networks
            setattr(self, name, getattr(self, name) + value.shape[0])


@torch.inference_mode()
def answer(system: LSTSSystem, *blocks: RawBatch, method: MethodConfig | None = None) -> VideoAnswer:
    runner = system.runner(system.model, method or system.method)
    for block in blocks:
        runner.push(block)
    return runner.finish()


def same(a: VideoAnswer, b: VideoAnswer, tolerance: float = 1e-5, frames: int | None = None) -> None:
    """Compare boxes frame by frame; `frames`: only the first so many."""
    one, two = a.detections, b.detections
    if frames is not None:
        one, two = one[one.frame_N < frames], two[two.frame_N < frames]
    assert np.array_equal(one.frame_N, two.frame_N)
    assert np.array_equal(one.label_N, two.label_N)
    np.testing.assert_allclose(one.score_N, two.score_N, atol=tolerance)
    np.testing.assert_allclose(one.box_N4, two.box_N4, atol=tolerance * 100)


def differ(a: VideoAnswer, b: VideoAnswer, frame: int) -> bool:
    one, two = (v.detections[v.detections.frame_N == frame] for v in (a, b))
    return len(one) != len(two) or not np.allclose(one.score_N, two.score_N, atol=1e-5)


@pytest.mark.parametrize("schedule", ["offline", "online"])
def test_every_frame_of_videos_of_any_length_is_answered_once(
    system_of: Make, method_of: Method, video_of: Video, schedule: str
) -> None:
    system = system_of(method_of(schedule=schedule))
    calls = Calls(system)
    for frames in range(1, 36):
        found = answer(system, video_of(frames))
        assert sorted(found.frames) == list(range(frames))
        assert len(found.key_frames) == len(set(found.key_frames)) == -(-frames // 10)
        assert calls.high == len(found.key_frames)
        assert calls.low == frames
        assert sum(calls.light) == frames - len(found.key_frames)
        assert set(found.detections.frame_N.tolist()) <= set(range(frames))
        calls.high = calls.low = 0
        calls.light.clear()


def test_nine_frames_go_through_the_light_branch_in_one_batch(
    system_of: Make, method_of: Method, video_of: Video
) -> None:
    system = system_of(method_of())
    calls = Calls(system)
    answer(system, video_of(34))
    assert calls.light == [9, 9, 9, 3]
    assert calls.high == 4


@pytest.mark.parametrize("schedule", ["offline", "online"])
@pytest.mark.parametrize("head", [None, {"kind": "rfcn"}])
def test_batches_answer_as_single_frames_do(
    system_of: Make, method_of: Method, video_of: Video, frames_of: Cut, schedule: str, head: dict[str, object] | None
) -> None:
    """§12.14; blocks of any length, too: what a loader hands over at once changes nothing."""
    if head is not None:
        head = {**head, "anchor_scales": [1, 2], "anchor_ratios": [0.5, 1, 2], "proposals_before": 60}
        head |= {"proposals": 20, "bins": 3, "hard_examples": 8}
    system = system_of(method_of(schedule=schedule), head=head)
    video = video_of(23)
    whole = answer(system, video)
    assert len(whole.detections) > 23
    for piece in (1, 4, 10):
        same(whole, answer(system, *(frames_of(video, s, min(23, s + piece)) for s in range(0, 23, piece))))


def test_online_answers_do_not_depend_on_what_comes_later(
    system_of: Make, method_of: Method, video_of: Video, frames_of: Cut
) -> None:
    """§12.13, with the offline schedule as control: there, the key frame lies ahead."""
    video, other = video_of(30), video_of(30, seed=9)
    for schedule, causal in (("online", True), ("offline", False)):
        system = system_of(method_of(schedule=schedule))
        changed = 0
        for known in (1, 3, 11, 17):
            mixed = (frames_of(video, 0, known), frames_of(other, known, 30))
            a, b = answer(system, video), answer(system, *mixed)
            if causal:
                same(a, b, frames=known)
            else:
                changed += any(differ(a, b, frame) for frame in range(known))
            assert differ(a, b, 29)
        assert causal or changed > 0


def test_first_key_frame_is_the_single_frame_detector(
    system_of: Make, method_of: Method, video_of: Video, frames_of: Cut
) -> None:
    """§12.15; later key frames are not, since they are fused with the memory."""
    system = system_of(method_of(schedule="online"))
    video = video_of(21)
    found = answer(system, video)
    single = answer(system, video, method=SINGLE)
    assert not differ(found, single, 0)
    assert differ(found, single, 10)
    assert differ(found, single, 1)


def test_nothing_of_one_video_reaches_the_next(system_of: Make, method_of: Method, video_of: Video) -> None:
    system = system_of(method_of())
    alone = answer(system, video_of(15, seed=2))
    answer(system, video_of(25, seed=1))
    same(alone, answer(system, video_of(15, seed=2)), tolerance=0)
    runners = system.video_runners(arms=False), system.video_runners(arms=False)
    assert runners[0]["main"] is not runners[1]["main"]
    assert isinstance(runners[0]["main"], LSTSRunner)


def test_a_scene_cut_drops_the_memory(system_of: Make, method_of: Method, video_of: Video, frames_of: Cut) -> None:
    first, second = video_of(13, seed=3), video_of(30, seed=4)
    later = frames_of(second, 13, 30)
    system = system_of(method_of(schedule="online", scene_cut=30.0))
    cut = answer(system, first, later)
    assert cut.extras["cuts"].tolist() == [13]
    assert cut.key_frames == (0, 10, 13, 23)
    alone = answer(system, later)
    for frame in range(13, 30):
        assert not differ(cut, alone, frame)
    kept = answer(system, first, later, method=method_of(schedule="online"))
    assert kept.key_frames == (0, 10, 20)
    assert differ(kept, alone, 13)
    # Pieces that end at the cut, or around it, see the same one.
    pieces = answer(system, frames_of(first, 0, 12), frames_of(first, 12, 13), later)
    assert pieces.extras["cuts"].tolist() == [13]
    same(cut, pieces)


def test_reused_boxes_are_those_of_the_key_frame(system_of: Make, method_of: Method, video_of: Video) -> None:
    system = system_of(method_of(non_key="hold", key="plain"))
    found = answer(system, video_of(14)).detections
    for frame, key in ((0, 4), (9, 4), (11, 13)):
        a, b = found[found.frame_N == frame], found[found.frame_N == key]
        np.testing.assert_array_equal(a.box_N4, b.box_N4)
    assert not np.array_equal(found[found.frame_N == 4].score_N, found[found.frame_N == 13].score_N)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "online"},
        {"non_key": "hold"},
        {"key": "plain"},
        {"interval": 1, "non_key": "hold"},
        {"interval": 3},
    ],
)
def test_told_cost_is_what_was_executed(system_of: Make, method_of: Method, video_of: Video, changes: dict) -> None:
    """§12.11: GMAC of a video, against torch's counter of what ran (matrix products and convolutions)."""
    system = system_of(method_of(**changes))
    system.requires_grad_(False)
    # Prepared beforehand: scaling of the frames is no part of a network's cost.
    batch = system.prepare(video_of(33), train=False)
    costs = system.frame_costs(system.model, *batch.video_BCTHW.shape[-2:])
    with FlopCounterMode(display=False, custom_mapping=_MORE_FORMULAS) as counter:
        told = float(system.predict(batch).extras["gmac"][0])
    # Suppression of overlapping boxes has some products, too, and is no part of a network's cost.
    assert told <= counter.get_total_flops() / 2e9 < 1.03 * told
    assert told / 33 == pytest.approx(average_gmac(costs, system.method, 33), rel=1e-6)


def test_key_frames_of_a_block_that_comes_in_pieces_are_computed_once(
    system_of: Make, method_of: Method, video_of: Video, frames_of: Cut
) -> None:
    system = system_of(method_of(schedule="online"))
    calls = Calls(system)
    video = video_of(20)
    for_all = answer(system, *(frames_of(video, s, s + 1) for s in range(20)))
    assert calls.high == 2
    assert calls.low == 20
    assert for_all.key_frames == (0, 10)


def test_a_method_that_the_model_lacks_is_refused(system_of: Make, method_of: Method) -> None:
    system = system_of(method_of(key="plain", non_key="hold"))
    with pytest.raises(ValueError, match="trained without"):
        system.runner(system.model, method_of())


def test_the_oracle_needs_the_truth(system_of: Make, method_of: Method, video_of: Video) -> None:
    from dataclasses import replace

    system = system_of(method_of(alignment="truth"))
    video = video_of(12)
    found = answer(system, video)
    still = replace(video.boxes, box_BTN4=video.boxes.box_BTN4[:, :1].expand(-1, 12, -1, -1))
    assert differ(found, answer(system, replace(video, boxes=still)), 8)
    with pytest.raises(ValueError, match="oracle"):
        answer(system, replace(video, boxes=None))


def test_prepared_videos_answer_as_raw_ones_do(system_of: Make, method_of: Method, video_of: Video) -> None:
    """`System.predict`, which latency is measured with, is the same thing."""
    for method in (method_of(), method_of(scene_cut=30.0)):
        system = system_of(method)
        video = video_of(14)
        with torch.inference_mode():
            prediction = system.predict(system.prepare(video, train=False))
        found = answer(system, video)
        scores = [found.detections.score_N[found.detections.label_N == k].max(initial=0) for k in range(3)]
        np.testing.assert_allclose(prediction.scores_BK[0].numpy(), scores, atol=1e-5)
        assert float(prediction.extras["gmac"][0]) == pytest.approx(found.gmac, rel=1e-5)
