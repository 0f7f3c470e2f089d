"""Loss, views, cost and weights of the system."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from data_specs.files import sha256_of
from training.core.config import DataConfig, WeightsFile
from training.core.cost import cost_of
from training.core.system import ClipBatch, RawBatch
from training.core.weights import WeightError
from training.resnet_rs.config import NetConfig
from training.resnet_rs.system import ResNetRS

CLASSES = ("one", "two", "three")


def system(values: dict[str, Any], *, data: dict[str, Any] | None = None, **model: Any) -> ResNetRS:
    torch.manual_seed(0)
    made = ResNetRS(NetConfig(**values["model"] | model), DataConfig(**values["data"] | (data or {})), CLASSES)
    for module in made.modules():  # fresh statistics would hide a wrong norm
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return made


def spread(made: ResNetRS, batch: ClipBatch) -> None:
    """Scale and shift the head so that the clips of a batch get scores that differ."""
    assert made.net.fc is not None
    with torch.no_grad():
        logits = made.view_scores(batch).log().flatten(0, 1)
        scale = 1 / logits.std(0).max()
        made.net.fc.weight.mul_(scale)
        made.net.fc.bias.copy_((made.net.fc.bias - logits.mean(0)) * scale)


def raw(values: dict[str, Any], clips: int = 1, count: int = 3, sizes: tuple[int, int] = (40, 60)) -> RawBatch:
    generator = torch.Generator().manual_seed(1)
    frames = clips * values["data"]["num_frames"]
    noise = torch.randint(0, 256, (count, frames, *sizes, 3), generator=generator)
    brightness = torch.rand(count, frames, 1, 1, 3, generator=generator)
    return RawBatch(
        frames_BTHWC=(noise * brightness).to(torch.uint8),
        size_B2=torch.tensor([sizes] * count),
        label_B=torch.arange(count) % 3,
        key=tuple(map(str, range(count))),
        seed_B=torch.arange(count) * 977,
        valid_B=torch.ones(count, dtype=torch.bool),
    )


def test_loss_is_smoothed_cross_entropy(values: dict[str, Any]) -> None:
    made = system(values, drop_path=0.0, dropout=0.0).eval()
    batch = made.prepare(raw(values), train=False)
    spread(made, batch)
    output = made(batch)
    logits = made.net(batch.video_BCTHW)
    log_p = logits.log_softmax(-1)
    hard = -log_p[torch.arange(3), batch.label_B].mean()
    expected = 0.9 * hard - 0.1 * log_p.mean()
    torch.testing.assert_close(output.loss, expected)
    assert (output.loss - F.cross_entropy(logits, batch.label_B)).abs() > 1e-4


def test_scores_of_views_are_mean_probabilities(values: dict[str, Any]) -> None:
    transform = values["data"]["transform"] | {"eval_crops": 3}
    many = system(values, data={"eval_clips": 4, "transform": transform}).eval()
    clips = raw(values, clips=4)
    with torch.inference_mode():
        batch = many.prepare(clips, train=False)
        spread(many, batch)
        scores = many.view_scores(batch)
        assert scores.shape == (3, 12, 3)
        torch.testing.assert_close(many.predict(batch).scores_BK, scores.mean(1))
        # The mean of probabilities is not the softmax of the mean logit (pitfall 9).
        logits = scores.log().mean(1).softmax(-1)
        assert (logits - scores.mean(1)).abs().max() > 1e-4
        # View number 4·crop + clip is the plain prediction of that clip, for the centre crop.
        single = system(values).eval()
        single.load_state_dict(many.state_dict())
        steps = values["data"]["num_frames"]
        for clip in range(4):
            part = RawBatch(
                clips.frames_BTHWC[:, clip * steps : (clip + 1) * steps], clips.size_B2, clips.label_B, clips.key,
                clips.seed_B, clips.valid_B,
            )  # fmt: skip
            alone = single.predict(single.prepare(part, train=False)).scores_BK
            torch.testing.assert_close(scores[:, 4 + clip], alone, atol=2e-4, rtol=1e-4)
        assert (scores[:, 0] - scores[:, 8]).abs().max() > 1e-5


def test_training_sees_one_clip_of_training_size(values: dict[str, Any]) -> None:
    transform = values["data"]["transform"] | {"eval_crops": 3, "eval_size": 48, "eval_short_side": 48}
    made = system(values, data={"eval_clips": 4, "transform": transform})
    assert made.prepare(raw(values), train=True).video_BCTHW.shape == (3, 3, 4, 32, 32)
    assert made.prepare(raw(values, clips=4), train=False).video_BCTHW.shape == (3, 3, 48, 48, 48)


def test_cost_counts_every_view(values: dict[str, Any]) -> None:
    one = system(values).cost()["main"]
    transform = values["data"]["transform"] | {"eval_crops": 3}
    thirty = system(values, data={"eval_clips": 10, "transform": transform}).cost()["main"]
    assert thirty.gmac == pytest.approx(30 * one.gmac)
    assert one.per == "video"
    assert one.params == thirty.params


@pytest.mark.parametrize(
    ("model", "overrides", "params", "gmac"),
    [
        ("resnet_rs", {}, 48_129_840, 88.02),
        ("resnet_rs", {"size": "256", "pool_t": "2", "depth": "200", "frames": "48"}, 121_376_560, 311.98),
        ("resnet_rs", {"classes": "600"}, 48_539_640, 88.02),
        ("resnet_rs", {"se_ratio": "0", "gating": "none", "stem": "v0"}, 32_491_728, 91.03),
        ("r3d50", {"pool_t": "2"}, 33_617_872, 49.63),
        ("slowonly50", {}, 32_454_096, 54.52),
    ],
)
def test_named_models_cost_what_is_published(model: str, overrides: dict[str, str], params: int, gmac: float) -> None:
    row = cost_of(model, overrides)
    assert row.params == params
    assert round(row.gmac, 2) == gmac
    assert row.per == "view"


def test_wrong_settings_of_a_named_model_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        cost_of("resnet_rs", {"dept": "50"})
    with pytest.raises(ValueError, match="depth must be one of"):
        cost_of("resnet_rs", {"depth": "51"})
    with pytest.raises(ValueError, match="frames of model 'resnet_rs' must be positive"):
        cost_of("resnet_rs", {"frames": "0"})


def test_starts_from_a_file_of_weights(values: dict[str, Any], tmp_path: Path) -> None:
    source = system(values)
    path = tmp_path / "net.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in source.net.state_dict().items()}, path)
    file = WeightsFile(path="net.safetensors", sha256=sha256_of(path))
    config = NetConfig(**values["model"] | {"weights": file})
    torch.manual_seed(9)
    # The head is the data set's own: here one of two classes.
    started = ResNetRS(config, DataConfig(**values["data"]), ("a", "b"), root=tmp_path)
    torch.testing.assert_close(started.net.layer4[0].conv1.weight, source.net.layer4[0].conv1.weight)
    assert started.net.fc is not None
    assert started.net.fc.weight.shape[0] == 2
    wrong = NetConfig(**values["model"] | {"weights": file, "width": 0.25})
    with pytest.raises(WeightError, match="does not fit the network"):
        ResNetRS(wrong, DataConfig(**values["data"]), CLASSES, root=tmp_path)


def test_a_view_does_not_depend_on_the_others(values: dict[str, Any]) -> None:
    made = system(values, data={"eval_clips": 2}).eval()
    batch = made.prepare(raw(values, clips=2), train=False)
    spread(made, batch)
    video = batch.video_BCTHW.clone()
    video[:, :, 4:] = 0
    changed = ClipBatch(**{**vars(batch), "video_BCTHW": video})
    with torch.inference_mode():
        before, after = made.view_scores(batch), made.view_scores(changed)
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-4
