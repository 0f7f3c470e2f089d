"""Task `sound_or_picture` as it is drawn: what tells class and group, and what must not."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tasks.ops.controlled import checked_config
from tasks.ops.sound_or_picture import CHORDS, CLASSES, GROUPS, HUM_HZ, SAMPLE_RATE, SoundOrPictureConfig
from tasks.ops.sound_or_picture_render import Rendered, render_sounding

Array = NDArray[np.float64]

FLAGS = ("picture_informative", "sound_informative", "picture_distractor", "sound_distractor")


def make(**fields: object) -> SoundOrPictureConfig:
    base = {"num_train": 12, "num_val": 12, "num_test": 12, "size": 32, "segments": 4}
    return SoundOrPictureConfig.model_validate(base | fields)


def videos(config: SoundOrPictureConfig, count: int) -> list[Rendered]:
    return [render_sounding(config, "train", number) for number in range(count)]


def test_the_same_arguments_give_the_same_video() -> None:
    first = render_sounding(make(), "train", 9)
    assert first.sound_N is not None
    assert first.frames_THWC.shape == (32, 32, 32, 3)
    assert first.sound_N.shape == (round(32 / 6 * SAMPLE_RATE),)
    assert (first.frames_THWC.dtype, first.sound_N.dtype) == (np.uint8, np.int16)
    again = render_sounding(make(), "train", 9)
    assert np.array_equal(first.frames_THWC, again.frames_THWC)
    assert np.array_equal(first.sound_N, again.sound_N)
    assert (first.label, first.facts) == (again.label, again.facts) == (9, first.facts)
    for other in (
        render_sounding(make(), "train", 21),
        render_sounding(make(), "val", 9),
        render_sounding(make(seed=1), "train", 9),
    ):
        assert other.label == 9
        assert not np.array_equal(first.frames_THWC, other.frames_THWC)
        assert not np.array_equal(first.sound_N, other.sound_N)


def test_classes_take_turns() -> None:
    assert len(set(CLASSES)) == 12
    labels = [video.label for video in videos(make(), 24)]
    assert labels == [*range(12), *range(12)]


def test_every_relevant_modality_tells_somewhere() -> None:
    """With probability 0 exactly once; with 1 always."""
    for probability in (0.0, 0.4, 1.0):
        for video in videos(make(informative=probability), 24):
            for modality, other in (("picture", "sound"), ("sound", "picture")):
                flags = str(video.facts[f"{modality}_informative"])
                if video.facts["group"] == other:
                    assert flags == "0000"
                else:
                    assert "1" in flags
                    assert probability != 0 or flags.count("1") == 1
                    assert probability != 1 or flags == "1111"


def test_shares_are_those_asked_for() -> None:
    found = videos(make(informative=0.25, distractors=0.6, segments=10), 72)
    misled = {
        group: "".join(str(v.facts[name]) for v in found if v.facts["group"] == group)
        for group, name in (("sound", "picture_distractor"), ("picture", "sound_distractor"))
    }
    for flags in misled.values():
        assert abs(flags.count("1") / len(flags) - 0.6) < 0.13  # four standard errors of 240
    told = "".join(str(v.facts["picture_informative"]) for v in found if v.facts["group"] != "sound")
    assert abs(told.count("1") / len(told) - 0.25) < 0.08
    for video in found:
        for group, names in {"sound": FLAGS[3:], "picture": FLAGS[2:3], "both": FLAGS[2:]}.items():
            assert video.facts["group"] != group or all("1" not in str(video.facts[name]) for name in names)


def test_nothing_else_depends_on_the_class() -> None:
    """Another class of the group in the same place: the same segments tell, and the others are the same to the bit."""
    config = make()
    for number in range(4):
        clips = [render_sounding(config, "train", number, label) for label in range(12)]
        for first in range(0, 12, 4):
            one = clips[first]
            for other in clips[first + 1 : first + 4]:
                assert other.facts == one.facts
                differs = (one.frames_THWC != other.frames_THWC).reshape(4, -1).any(1)
                assert [str(int(d)) for d in differs] == list(str(one.facts["picture_informative"]))
                assert one.sound_N is not None
                assert other.sound_N is not None
                differs = (one.sound_N != other.sound_N).reshape(4, -1).any(1)
                assert [str(int(d)) for d in differs] == list(str(one.facts["sound_informative"]))
        assert clips[4].facts["picture_informative"] == clips[8].facts["picture_informative"]
        assert clips[0].facts["sound_informative"] == clips[8].facts["sound_informative"]


def test_silence_takes_the_sound_and_nothing_else() -> None:
    loud, quiet = videos(make(), 60), videos(make(silent=0.4), 60)
    silent = [video for video in quiet if video.facts["silent"]]
    assert abs(len(silent) / 60 - 0.4) < 0.17  # three standard errors
    assert {video.facts["group"] for video in silent} == {"picture", "both"}
    for before, after in zip(loud, quiet, strict=True):
        assert before.sound_N is not None
        assert np.array_equal(before.frames_THWC, after.frames_THWC)
        if after.facts["silent"]:
            assert after.sound_N is None
            assert (after.facts["sound_informative"], after.facts["sound_distractor"]) == ("0000", "0000")
            assert "1" in str(after.facts["picture_informative"])
        else:
            assert np.array_equal(before.sound_N, after.sound_N)
    most = videos(make(silent=2 / 3), 24)
    assert [video.sound_N is None for video in most] == [video.facts["group"] != "sound" for video in most]


# --- what a classifier can see -----------------------------------------------------------------------------


def accuracy(features: list[Array], labels: list[int]) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return float(cross_val_score(model, np.array(features), labels, cv=4).mean())


def around_the_brightest(grey: Array, side: int) -> Array:
    """A window around what is brighter than any background."""
    bright = np.argwhere(grey > 190)
    y, x = np.rint(bright.mean(0)).astype(int)
    return np.pad(grey, side, mode="edge")[y + side // 2 : y + side // 2 + side, x + side // 2 : x + side // 2 + side]


def test_glyphs_can_be_told_at_half_size() -> None:
    """32 pixels; the negative control has the labels of the next video."""
    config = make(size=64, informative=1.0, segments=5)
    pictures, labels = [], []
    for number in range(8 * 6):
        label = 4 + number % 8
        frames = render_sounding(config, "train", number, label).frames_THWC
        for frame in frames[3::8].astype(np.float64):
            small = frame.mean(2).reshape(32, 2, 32, 2).mean((1, 3))
            pictures.append(around_the_brightest(small, 16).ravel())
            labels.append(label)
    assert accuracy(pictures, labels) > 0.95
    shuffled = list(np.random.default_rng(0).permutation(labels))
    assert accuracy(pictures, shuffled) < 0.25


def spectrogram(sound: NDArray[np.int16]) -> Array:
    """Log power (256, steps) by windows of 10 ms every 5 ms and 511 points, of one segment."""
    wave = sound.astype(np.float64) / 32768
    starts = np.arange(0, len(wave) - 240, 120)
    windows = wave[starts[:, None] + np.arange(240)] * np.hanning(241)[:-1]
    return np.asarray(np.log(np.abs(np.fft.rfft(windows, 511)) ** 2 + 1e-6).T)


def test_hum_and_chords_can_be_told_from_short_windows() -> None:
    """Windows of 10 ms are coarse: 200 Hz. Group from the lowest bins of any segment, class where there is a chord."""
    config = make(informative=0.5, distractors=0.0)
    low, groups, whole, labels = [], [], [], []
    for number in range(48):
        label = (0, 1, 2, 3, 4, 8, 9, 10, 11)[number % 9]
        video = render_sounding(config, "train", number, label)
        assert video.sound_N is not None
        for segment, sound in enumerate(video.sound_N.reshape(4, -1)):
            power = spectrogram(sound)
            low.append(np.concatenate([power[:8].mean(1), power[:8].std(1)]))
            groups.append(GROUPS.index(str(video.facts["group"])))
            if str(video.facts["sound_informative"])[segment] == "1":
                whole.append(power.mean(1))
                labels.append(label)
    assert accuracy(low, groups) > 0.97
    assert accuracy(whole, labels) > 0.95
    shuffled = list(np.random.default_rng(0).permutation(groups))
    assert accuracy(low, shuffled) < 0.6


def test_tones_are_apart() -> None:
    tones = sorted(tone for chord in CHORDS.values() for tone in chord)
    assert len(CHORDS) == 8
    assert (tones[0] > 300, tones[-1] < 8000) == (True, True)
    assert np.diff(tones).min() >= 200
    assert max(HUM_HZ.values()) * 1.02 < tones[0] - 100


# --- configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "sound_or_pictur"}, "no task 'sound_or_pictur'; did you mean 'sound_or_picture'"),
        ({"num_val": 11}, "num_val 11 is less than the 12 classes of task 'sound_or_picture'"),
        ({"fps": 7}, r"segment_frames 8 at fps 7 are 1\.14 s, a segment of .* must last 1\.28 s at least"),
        ({"num_frames": 40}, "num_frames: no setting of task 'sound_or_picture', which has segments, segment_frames, "),
        ({"min_gap": 2, "num_frames": 8}, "min_gap, num_frames: no setting of task 'sound_or_picture'"),
        ({"task": "late", "silent": 0.1}, "silent: no setting of task 'late', which has num_frames, min_gap"),
        ({"silent": 0.7}, "silent: Input should be less than or equal to 0.66"),
        ({"informative": 1.1}, "informative: "),
        ({"distractors": -0.1}, "distractors: "),
        ({"size": 33}, "size: Input should be a multiple of 2"),
        ({"segmnets": 3}, "segmnets: Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, object], message: str) -> None:
    base = {"task": "sound_or_picture", "num_train": 12, "num_val": 12, "num_test": 12}
    with pytest.raises(ValueError, match=message):
        checked_config(base | values)


def test_limits_are_allowed() -> None:
    """Negative control of the test above; and they can be drawn."""
    base = {"task": "sound_or_picture", "num_train": 12, "num_val": 12, "num_test": 12}
    for fields in (
        {"segment_frames": 32, "fps": 25, "segments": 1},
        {"segment_frames": 2, "fps": 1, "size": 32},
        {"segment_frames": 64, "fps": 15, "size": 32, "segments": 1, "noise": 0},
    ):
        config = checked_config(base | fields)
        assert isinstance(config, SoundOrPictureConfig)
        for number in (0, 5, 10):
            video = render_sounding(config, "test", number)
            assert len(video.frames_THWC) == config.num_frames
            assert video.sound_N is not None
            assert len(video.sound_N) == round(config.num_frames * SAMPLE_RATE / config.fps)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split 'dev' is none of train, val, test"):
        render_sounding(make(), "dev", 0)
