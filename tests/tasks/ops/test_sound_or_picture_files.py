"""Folders of `sound_or_picture`: what `truth.csv` says can be measured in the decoded files, segment by segment."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data_specs.files import sha256_of
from tasks.ops.controlled_files import encode_sounding, write_task
from tasks.ops.sound_or_picture import CHORDS, CLASSES, GROUPS, HUE_DEG, HUM_HZ, SAMPLE_RATE, SoundOrPictureConfig
from tasks.ops.sound_or_picture_render import render_sounding

Array = NDArray[np.float64]

SEGMENTS = 4
BLUR = 2 * 1024
"""Samples: a block of AAC overlaps with the next one."""


def make(**fields: object) -> SoundOrPictureConfig:
    base = {"num_train": 24, "num_val": 12, "num_test": 12, "size": 48, "segments": SEGMENTS, "silent": 0.2}
    return SoundOrPictureConfig.model_validate(base | fields)


class Decoded(NamedTuple):
    row: dict[str, str]
    frames: Array
    """(T,H,W,3)"""
    sound: Array | None
    """(N,), full scale 1."""


def decode(path: Path) -> tuple[Array, Array | None]:
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return frames.astype(np.float64), None
        context = container.streams.audio[0].codec_context
        assert (context.name, context.sample_rate, context.channels) == ("aac", SAMPLE_RATE, 1)
        parts = list(container.decode(audio=0))
        assert parts[0].pts == 0
        return frames.astype(np.float64), np.concatenate([part.to_ndarray()[0] for part in parts]).astype(np.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sound_or_picture") / "videos"
    assert write_task(out, make()) == 48
    return out


@pytest.fixture(scope="module")
def videos(folder: Path) -> list[Decoded]:
    with (folder / "truth.csv").open(newline="") as file:
        return [Decoded(row, *decode(folder / row["path"])) for row in csv.DictReader(file)]


def spectrum(sound: Array) -> Callable[[float], float]:
    """Amplitude of the tones in a piece of sound, by their frequency in Hz."""
    window = np.hanning(len(sound))
    amplitudes = 2 * np.abs(np.fft.rfft(sound * window)) / window.sum()
    return lambda frequency: float(amplitudes[round(frequency * len(sound) / SAMPLE_RATE)])


def segment_of(sound: Array, segment: int) -> Array:
    return sound[make().first_sample(segment) : make().first_sample(segment + 1)]


def heard(sound: Array) -> str:
    """Class whose chord a piece of sound has; empty for none. All three tones of a chord have to be there."""
    found = [name for name, chord in CHORDS.items() if min(map(spectrum(sound), chord)) > 0.01]
    assert len(found) <= 1
    return found[0] if found else ""


def seen(frames: Array) -> bool:
    """Whether all frames have pixels brighter than any background."""
    return bool(((frames.mean(3) > 190).sum((1, 2)) > 8).all())


def hue(frames: Array) -> float:
    """Degrees, of the mean of what is no glyph."""
    red, green, blue = frames[frames.max(3) < 170].mean(0)
    return float(np.rad2deg(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)))


def nearest_group(degrees: float) -> str:
    return min(GROUPS, key=lambda group: abs((degrees - HUE_DEG[group] + 180) % 360 - 180))


def hum_group(sound: Array) -> str:
    """Group whose hum is the loudest, within the 2 % by which it differs from video to video."""
    level = spectrum(sound)
    return max(GROUPS, key=lambda g: max(level(HUM_HZ[g] * factor) for factor in np.linspace(0.98, 1.02, 15)))


@pytest.fixture(scope="module")
def measured(videos: list[Decoded]) -> list[tuple[list[bool], list[str]]]:
    """Per video, segment by segment: whether a glyph is seen, and whose chord is heard (empty: nobody's)."""
    return [
        (
            [seen(picture) for picture in np.split(frames, SEGMENTS)],
            ["" if sound is None else heard(segment_of(sound, segment)) for segment in range(SEGMENTS)],
        )
        for _, frames, sound in videos
    ]


def either(row: dict[str, str], modality: str) -> str:
    pairs = zip(row[f"{modality}_informative"], row[f"{modality}_distractor"], strict=True)
    return "".join("01"["1" in pair] for pair in pairs)


def test_flags_are_what_can_be_measured(videos: list[Decoded], measured: list[tuple[list[bool], list[str]]]) -> None:
    def wrong(told: Callable[[dict[str, str], str], str]) -> int:
        count = 0
        for video, (glyphs, chords) in zip(videos, measured, strict=True):
            for modality, found in (("picture", glyphs), ("sound", chords)):
                flags = told(video.row, modality)
                count += sum(bool(here) != (flag == "1") for here, flag in zip(found, flags, strict=True))
        return count

    assert wrong(either) == 0
    # Negative controls: flags in reverse, of the other modality, and without distractors.
    assert wrong(lambda row, modality: either(row, modality)[::-1]) > 40
    assert wrong(lambda row, modality: either(row, {"sound": "picture", "picture": "sound"}[modality])) > 40
    assert wrong(lambda row, modality: row[f"{modality}_informative"]) > 20


def test_chords_are_those_of_the_class_or_of_a_distractor(
    videos: list[Decoded], measured: list[tuple[list[bool], list[str]]]
) -> None:
    misled = set()
    for (row, _, _), (_, chords) in zip(videos, measured, strict=True):
        assert {chord for chord, flag in zip(chords, row["sound_informative"], strict=True) if flag == "1"} <= {
            row["class"]
        }
        misled |= {chord for chord, flag in zip(chords, row["sound_distractor"], strict=True) if flag == "1"}
    assert misled == {name for name in CLASSES if name.startswith("sound")}


def test_the_scene_tells_the_group_in_every_segment(videos: list[Decoded]) -> None:
    swapped = 0
    for row, frames, sound in videos:
        for segment, picture in enumerate(np.split(frames, SEGMENTS)):
            assert nearest_group(hue(picture)) == row["group"]
            swapped += nearest_group(hue(picture[..., ::-1])) == row["group"]
            assert sound is None or hum_group(segment_of(sound, segment)) == row["group"]
    assert swapped < 0.6 * SEGMENTS * len(videos)  # with red and blue exchanged: green alone stays what it is


def beside(videos: list[Decoded], shift: int = 0) -> Iterator[tuple[float, float]]:
    """Amplitude of a chord near the end of its segment, just inside and just outside of what AAC can smear.

    Of chords before or after a segment without one.
    """
    for row, _, sound in videos:
        flags = either(row, "sound") if sound is not None else ""
        for pair in range(len(flags) - 1):
            if flags[pair : pair + 2] not in ("01", "10"):
                continue
            chord = CHORDS[heard(segment_of(sound, pair + int(flags[pair + 1])))]
            border = make().first_sample(pair + 1) + shift
            before, after = (sound[start : start + 4096] for start in (border - BLUR - 4096, border + BLUR))
            inside, outside = (before, after) if flags[pair] == "1" else (after, before)
            yield max(map(spectrum(inside), chord)), max(map(spectrum(outside), chord))


def test_every_sound_is_in_its_segment(videos: list[Decoded]) -> None:
    found = list(beside(videos))
    assert len(found) > 30
    assert min(inside for inside, _ in found) > 0.015
    assert max(outside for _, outside in found) < 0.007
    # With borders a quarter of a segment off, one way or the other, the sound lies in the wrong segment.
    moved = [[outside for _, outside in beside(videos, shift)] for shift in (-8000, 8000)]
    assert np.max(moved, axis=0).min() > 0.015


def test_picture_and_sound_start_together(tmp_path: Path) -> None:
    """A click and a flash in the middle come out where they went in."""
    frames = np.zeros((16, 32, 32, 3), np.uint8)
    frames[9] = 255
    sound = np.zeros(2 * SAMPLE_RATE, np.int16)
    sound[27_000:27_012] = 20_000  # frame 9 at 8 fps
    encode_sounding(frames, sound, tmp_path / "new" / "click.mp4", 8)
    shown, decoded = decode(tmp_path / "new" / "click.mp4")
    assert decoded is not None
    assert len(shown) == 16
    assert int(shown.mean((1, 2, 3)).argmax()) == 9
    assert abs(int(np.abs(decoded).argmax()) - 27_006) < 24  # a millisecond
    assert 2 * SAMPLE_RATE <= len(decoded) < 2 * SAMPLE_RATE + 1024


def test_silent_videos_have_no_stream(folder: Path, videos: list[Decoded]) -> None:
    silent = {row["path"] for row, _, _ in videos if row["silent"] == "1"}
    assert silent == {row["path"] for row, _, sound in videos if sound is None}
    assert 3 <= len(silent) <= 18
    assert not [path for path in silent if "/sound_" in path]
    for row, _, _ in videos:
        relevant = {"sound": ["sound"], "picture": ["picture"], "both": ["picture", "sound"]}[row["group"]]
        for modality in relevant if row["silent"] == "0" else ["picture"]:
            assert "1" in row[f"{modality}_informative"], row


def test_the_folder_is_that_of_a_controlled_task(folder: Path, videos: list[Decoded]) -> None:
    about = json.loads((folder / "task.json").read_text())
    assert SoundOrPictureConfig.model_validate(about["config"]) == make()
    assert about["classes"] == list(CLASSES)
    assert about["chords_hz"] == {name: list(chord) for name, chord in CHORDS.items()}
    rows = [video.row for video in videos]
    assert list(rows[0]) == [
        *("path", "class", "group"),
        *("picture_informative", "sound_informative", "picture_distractor", "sound_distractor", "silent"),
    ]
    assert {row["path"] for row in rows} == {str(p.relative_to(folder)) for p in folder.glob("*/*/*.mp4")}
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        mine = [row for row in rows if row["path"].startswith(f"{split}/")]
        assert [row["class"] for row in mine] == [*CLASSES] * (count // 12)
        assert all(row["path"].split("/")[1] == row["class"] for row in mine)


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path) -> None:
    few = {"num_train": 12, "num_val": 12, "num_test": 12, "size": 32, "segments": 1}
    for name in ("once", "again"):
        write_task(tmp_path / name, make(**few))

    def sums(name: str) -> dict[str, str]:
        return {str(p.relative_to(tmp_path / name)): sha256_of(p) for p in (tmp_path / name).rglob("*") if p.is_file()}

    assert len(set(sums("once").values())) == 38
    assert sums("once") == sums("again")


def test_a_failing_ffmpeg_is_told(tmp_path: Path) -> None:
    video = render_sounding(make(), "train", 0)
    assert video.sound_N is not None
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(RuntimeError, match=r"could not write .*taken\.mp4: "):
        encode_sounding(video.frames_THWC, video.sound_N, tmp_path / "taken.mp4", 6)
