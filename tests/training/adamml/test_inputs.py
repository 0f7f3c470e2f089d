"""Spectrograms, differences and flow as the networks see them: one crop and one flip per video for all."""

import math

import numpy as np
import pytest
import torch

from training.adamml.config import SpectrogramConfig
from training.adamml.inputs import FLOW_STD, SegmentTransform, log_spectrogram, policy_view

PAPER = SpectrogramConfig(n_fft=511, window=240, hop=120, epsilon=1e-6)
FLOOR = math.log(1e-6)


def reference_spectrogram(wave: np.ndarray, n_fft: int, window: int, hop: int, epsilon: float) -> np.ndarray:
    """The definition, column by column: a Hann window in the middle of each stretch, a plain DFT."""
    half = n_fft // 2
    padded = np.concatenate([np.zeros(half), wave, np.zeros(half)])
    hann = np.zeros(n_fft)
    start = (n_fft - window) // 2
    hann[start : start + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    bins = np.arange(n_fft // 2 + 1)
    dft = np.exp(-2j * np.pi * np.outer(bins, np.arange(n_fft)) / n_fft)
    columns = 1 + (len(padded) - n_fft) // hop
    frames = np.stack([padded[c * hop : c * hop + n_fft] * hann for c in range(columns)], axis=1)
    return np.log(np.abs(dft @ frames) ** 2 + epsilon)


def test_a_stretch_of_the_papers_length_gives_256_by_256_and_silence_its_floor():
    silence = log_spectrogram(torch.zeros(2, 30720, dtype=torch.int16), PAPER)
    assert silence.shape == (2, 256, 256)
    assert PAPER.shape(30720) == (256, 256)
    torch.testing.assert_close(silence, torch.full_like(silence, -13.8155), atol=1e-4, rtol=0)
    # An even transform would give a square of 257.
    even = PAPER.model_copy(update={"n_fft": 512})
    assert log_spectrogram(torch.zeros(1, 30720), even).shape == (1, 257, 257) == (1, *even.shape(30720))


def test_spectrogram_is_the_definition():
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 3000)
    want = reference_spectrogram(wave, 511, 240, 120, 1e-6)
    got = log_spectrogram(torch.from_numpy(wave)[None], PAPER)[0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-3)
    shifted = reference_spectrogram(np.roll(wave, 40), 511, 240, 120, 1e-6)
    assert np.abs(got - shifted).max() > 1


def test_spectrogram_of_integers_and_a_tone():
    time = torch.arange(30720) / 24000
    tone = torch.sin(2 * torch.pi * 3000 * time)
    floats = log_spectrogram(tone[None], PAPER)
    integers = log_spectrogram((tone * 32767).round().to(torch.int16)[None], PAPER)
    strong = floats > 0  # below, the rounding to 16 bits is heard
    assert strong.sum() > 200
    torch.testing.assert_close(floats[strong], integers[strong], atol=1e-2, rtol=0)
    assert floats[0, :, 128].argmax() == round(3000 / 24000 * 511)


def test_low_precision_outside_does_not_reach_the_spectrogram():
    wave = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = log_spectrogram(wave, PAPER)
    torch.testing.assert_close(inside, log_spectrogram(wave, PAPER))
    assert inside.dtype == torch.float32


def test_shapes_and_order_of_all_modalities(small_model, small_data, noise_batch):
    model = small_model("rgb", "flow", "audio", proxies={"flow": "rgbdiff"})
    data = small_data(stack=3, flow=True)
    batch = SegmentTransform(model, data, model.inputs)(noise_batch(data, train=True), train=True)
    assert {name: tuple(value.shape) for name, value in batch.inputs.items()} == {
        "rgb": (4, 3, 4, 3, 16, 16),
        "flow": (4, 3, 4, 4, 16, 16),
        "audio": (4, 3, 1, 1, 16, 20),
        "rgbdiff": (4, 3, 4, 6, 16, 16),
    }
    assert batch.available["audio"].tolist() == [[True] * 3] * 3 + [[False] * 3]
    assert batch.available["rgb"].all()


def test_differences_are_those_of_the_cropped_frames(small_model, small_data, noise_batch):
    model, data = small_model("rgb", "rgbdiff"), small_data(stack=3, sound=None)
    transform = SegmentTransform(model, data, model.inputs)
    raw = noise_batch(data, train=True)
    batch = transform(raw, train=True)
    frames = transform.pictures.to_pixels(transform.pictures(raw, train=True).video_BCTHW).float()
    stacks = frames.permute(0, 1, 4, 2, 3).unflatten(1, (3, 4, 3))  # (B,S,T,q,3,H,W)
    want = (stacks[:, :, :, 1:] - stacks[:, :, :, :-1] + 255) / 2 / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    got = batch.inputs["rgbdiff"].unflatten(3, (2, 3)) * std + mean
    torch.testing.assert_close(got, want, atol=0.6 / 255, rtol=0)  # `to_pixels` rounds
    torch.testing.assert_close(batch.inputs["rgb"], transform.stacks(batch.video_BCTHW, 3)[:, :, :, 0])


def test_still_frames_have_the_resting_difference(small_model, small_data, noise_batch):
    model, data = small_model("rgbdiff"), small_data(stack=3, sound=None)
    raw = noise_batch(data)
    raw.frames_BTHWC[:] = raw.frames_BTHWC[:, :1]
    value = SegmentTransform(model, data, model.inputs)(raw, train=False).inputs["rgbdiff"]
    rest = [(0.5 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    want = torch.tensor(rest * 2)[:, None, None].expand_as(value)
    torch.testing.assert_close(value, want, atol=1e-5, rtol=1e-5)


def test_flow_shares_crop_and_flip_with_the_pictures_and_turns_round(small_model, small_data, noise_batch):
    """Flow drawn as copies of the red channel: after any crop both show the same, but x is inverted when mirrored."""
    model, data = small_model("rgb", "flow"), small_data(stack=2, flow=True, sound=None, pictures="positions")
    transform = SegmentTransform(model, data, model.inputs)
    raw = noise_batch(data, videos=4, train=True, seed=1)
    raw.flow_BTHWC[:] = raw.frames_BTHWC[..., :1].expand(-1, -1, -1, -1, 2)
    batch = transform(raw, train=True)
    red = (batch.inputs["rgb"][:, :, :, 0] * 0.229 + 0.485) * 255
    x, y = ((batch.inputs["flow"][:, :, :, channel] * FLOW_STD + 0.5) * 255 for channel in (0, 1))
    flipped = batch.flip_B
    assert 0 < flipped.sum() < 4
    torch.testing.assert_close(y, red, atol=1e-2, rtol=0)
    torch.testing.assert_close(x[~flipped], red[~flipped], atol=1e-2, rtol=0)
    torch.testing.assert_close(x[flipped], 255 - red[flipped], atol=1e-2, rtol=0)
    assert (x[flipped] - red[flipped]).abs().max() > 10


def test_the_policy_sees_every_second_frame_reduced(small_model):
    model = small_model()
    value = torch.randn(2, 3, 4, 3, 16, 16)
    small = policy_view("rgb", value, model)
    assert small.shape == (2, 3, 2, 3, 8, 8)
    want = torch.nn.functional.interpolate(value[0, 0, 2:3], size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(small[0, 0, 1], want[0])
    sound = torch.randn(2, 3, 1, 1, 16, 20)
    assert policy_view("audio", sound, model) is sound


def test_a_batch_without_sound_or_flow_says_how_to_read_it(small_model, small_data, noise_batch):
    model, data = small_model("rgb", "audio"), small_data()
    silent = noise_batch(small_data(sound=None))
    with pytest.raises(ValueError, match=r"data\.sound"):
        SegmentTransform(model, data, model.inputs)(silent, train=False)
    flow = small_model("rgb", "flow")
    without = small_data(stack=2, sound=None)
    with pytest.raises(ValueError, match=r"data\.flow"):
        SegmentTransform(flow, without, flow.inputs)(noise_batch(without), train=False)


def test_rows_of_a_batch(segments_of, small_model, small_data):
    batch = segments_of(small_model(), small_data())
    row = batch.row(2)
    assert row.key == ("video-2",)
    torch.testing.assert_close(row.inputs["audio"], batch.inputs["audio"][2:3])
    assert type(row) is type(batch)
