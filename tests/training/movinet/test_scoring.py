import random

import pytest
import torch
from torch import nn

from training.backbones.movinet_layout import STREAM
from training.core.system import ClipBatch
from training.core.views import split_views
from training.movinet.scoring import recalibrate, score_child
from training.movinet.supernet import Supernet


def batches(count: int, clips: int = 4, views: int = 1) -> list[ClipBatch]:
    generator = torch.Generator().manual_seed(0)
    return [
        ClipBatch(
            torch.randn(clips, 3, 4 * views, 16, 16, generator=generator) * 2 + number,
            torch.arange(clips) % 3,
            tuple(f"{number}-{i}" for i in range(clips)),
            torch.arange(clips),
            torch.ones(clips, dtype=torch.bool),
            torch.zeros(clips, 4),
            torch.zeros(clips, dtype=torch.bool),
        )
        for number in range(count)
    ]


def test_statistics_are_those_of_one_large_batch():
    norm = nn.BatchNorm2d(3, momentum=0.01)
    parts = [torch.randn(n, 3, 5, 5) * (n + 1) + n for n in (2, 3, 7)]
    recalibrate(norm, parts)
    whole = torch.cat(parts).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, whole.mean(1))
    torch.testing.assert_close(norm.running_var, whole.var(1))
    # Control: the mean of the batches' variances is another number.
    means = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in parts]).mean(0)
    assert not torch.allclose(norm.running_var, means, rtol=0.05)
    assert norm.momentum == 0.01
    assert norm.training


def test_only_batch_norm_is_in_training_mode_and_modes_come_back():
    seen = []
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5))
    net[1].register_forward_hook(lambda module, args, out: seen.append(torch.equal(out, args[0])))
    net.train()
    recalibrate(net, [torch.randn(3, 2, 4, 4)])
    assert seen == [True]
    assert net[0].training
    assert net[1].training
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(net, [])
    assert net[1].training


@pytest.fixture
def supernet(small_space) -> Supernet:
    torch.manual_seed(0)
    return Supernet(small_space, STREAM, 3)


def test_score_has_the_metrics_and_leaves_the_supernet_alone(supernet, small_space):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    genotype = small_space.sample(random.Random(0))
    scores = score_child(supernet, genotype, batches(2), batches(3), num_frames=4)
    assert {"val/top1", "val/nll"} <= set(scores)
    assert scores["val/samples"] == 12
    assert scores == score_child(supernet, genotype, batches(2), batches(3), num_frames=4)
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())
    with pytest.raises(ValueError, match="at least one batch"):
        score_child(supernet, genotype, batches(1), [], num_frames=4)


def test_padding_is_not_scored(supernet, small_space):
    genotype = small_space.sample(random.Random(0))
    padded = batches(1)
    padded[0].valid_B[2:] = False
    assert score_child(supernet, genotype, batches(1), padded, num_frames=4)["val/samples"] == 2


def test_recalibration_matters(supernet, small_space):
    """Control: clips of another brightness give other scores, because statistics are those of the given clips."""
    genotype = small_space.sample(random.Random(0))
    bright = [ClipBatch(**{**vars(b), "video_BCTHW": b.video_BCTHW + 50}) for b in batches(2)]
    plain, other = (score_child(supernet, genotype, clips, batches(2), num_frames=4) for clips in (batches(2), bright))
    assert plain["val/nll"] != other["val/nll"]


def test_views_follow_one_another():
    video = torch.arange(2 * 6).reshape(2, 1, 6, 1, 1)
    assert split_views(video, 3).flatten(1).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
