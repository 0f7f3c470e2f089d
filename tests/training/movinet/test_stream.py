"""Streams of a real net: whatever the calls and whatever the company, each video's answers are its own."""

import gc
import subprocess
import sys

import numpy as np
import pytest
import torch

from training.core.checkpoint import load_model
from training.core.config import ConfigError
from training.core.serving import VideoClassifier
from training.core.system import RawBatch
from training.movinet.live.reader import LiveReader
from training.movinet.live.session import LiveSession, resident_bytes
from training.movinet.stream import StreamBatch, open_stream

NEAR = {"atol": 2e-5, "rtol": 0}
CLASSES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def one_thread():
    """These nets are too small for two; beside other work a second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_model):
    return make_model(tmp_path_factory.mktemp("stream") / "m", classes=CLASSES)


def draw(frames: int, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """Return frames (T,H,W,3) whose colours wander."""
    rng = np.random.default_rng(seed)
    colour = np.clip(128 + rng.normal(0, 40, (frames, 1, 1, 3)).cumsum(0), 40, 215)
    return np.clip(colour + rng.normal(0, 25, (frames, height, width, 3)), 0, 255).astype(np.uint8)


def alone(folder, frames, window=None) -> np.ndarray:
    return open_stream(folder, window=window).push(frames)


def raw_batch(frames: np.ndarray) -> RawBatch:
    return RawBatch(
        torch.from_numpy(frames[None]),
        torch.tensor([frames.shape[1:3]]),
        torch.zeros(1, dtype=torch.int64),
        ("0",),
        torch.zeros(1, dtype=torch.int64),
        torch.ones(1, dtype=torch.bool),
    )


def differs(one, other) -> bool:
    return bool(np.abs(one - other).max() > 1e-3)


def test_answers_are_those_of_the_evaluated_system(folder):
    frames = draw(12)
    system = load_model(folder).system
    stream = open_stream(folder)
    scores = stream.push(frames)
    assert (scores.shape, scores.dtype, stream.classes, stream.stride) == ((12, 3), np.float32, CLASSES, 1)
    with torch.inference_mode():
        batch = system.prepare(raw_batch(frames), train=False)
        np.testing.assert_allclose(scores, system.running_scores(batch.video_BCTHW)[0].numpy(), **NEAR)
        np.testing.assert_allclose(scores[-1], system.predict(batch).scores_BK[0].numpy(), **NEAR)
    assert np.ptp(scores, axis=0).max() > 0.02  # answers change over time
    assert differs(alone(folder, frames[::-1])[-1], scores[-1])  # and the order of the frames counts


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("sizes", [(1,) * 12, (3, 1, 8), (7, 5)])
def test_answers_do_not_depend_on_the_calls(folder, window, sizes):
    frames = draw(12)
    stream = open_stream(folder, window=window)
    parts = np.split(frames, np.cumsum(sizes)[:-1])
    expected = stream.push(frames)
    stream.reset()
    np.testing.assert_allclose(np.concatenate([stream.push(part) for part in parts]), expected, **NEAR)
    forgetful = []
    for part in parts:
        stream.reset()
        forgetful.append(stream.push(part))
    assert differs(np.concatenate(forgetful), expected)  # the control: the state is what makes them equal


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("seed", range(3))
def test_videos_come_and_go_without_touching_one_another(folder, window, seed):
    """Eight videos of other sizes join, leave and are pushed, alone or together, as a die says."""
    rng = np.random.default_rng(seed)
    sizes = [(40, 56), (64, 48), (37, 41), (48, 48)]
    videos = {f"v{i}": draw(14, *sizes[i % 4], seed=i) for i in range(8)}
    expected = {name: alone(folder, frames, window) for name, frames in videos.items()}
    batch = StreamBatch(folder, window=window)
    waiting, at, seen = list(videos), {}, {name: [] for name in videos}
    while waiting or at:
        if waiting and (not at or rng.random() < 0.4):
            new = [waiting.pop(0) for _ in range(min(len(waiting), int(rng.integers(1, 4))))]
            batch.join(*new)
            at |= dict.fromkeys(new, 0)
        count = int(rng.integers(1, 4))
        able = [name for name in at if at[name] + count <= 14]
        chosen = list(rng.permutation(able)[: int(rng.integers(1, 5))])
        answers = batch.push({name: videos[name][at[name] : at[name] + count] for name in chosen})
        assert list(answers) == chosen
        for name, scores in answers.items():
            seen[name].append(scores)
            at[name] += count
        over = [name for name, done in at.items() if done == 14]
        batch.leave(*over)
        for name in over:
            del at[name]
        assert batch.names == list(at)
    for name, parts in seen.items():
        np.testing.assert_allclose(np.concatenate(parts), expected[name], err_msg=name, **NEAR)
    assert differs(expected["v0"], expected["v4"])  # of the same size: other videos, other answers


def test_a_video_that_left_begins_anew(folder):
    frames = draw(10)
    batch = StreamBatch(folder)
    batch.join("a", "b")
    first = batch.push({"a": frames[:5], "b": frames[:5]})["a"]
    batch.leave("a")
    batch.join("a")
    assert batch.names == ["b", "a"]
    again = batch.push({"a": frames[:5], "b": frames[5:]})
    np.testing.assert_allclose(again["a"], first, **NEAR)
    np.testing.assert_allclose(again["b"], alone(folder, frames)[5:], **NEAR)
    assert differs(again["b"], first)


def test_states_are_saved_and_restored_in_the_middle(folder, tmp_path):
    videos = {"a": draw(11, seed=1), "b": draw(8, 64, 48, seed=2)}
    expected = {name: alone(folder, frames) for name, frames in videos.items()}
    batch = StreamBatch(folder)
    batch.join(*videos)
    batch.push({"a": videos["a"][:3]})
    batch.push({name: frames[-8:-5] for name, frames in videos.items()})
    batch.save(tmp_path / "s.safetensors")
    other = StreamBatch(folder)
    other.join("x")
    other.restore(tmp_path / "s.safetensors")
    assert other.names == ["a", "b"]
    for stream in (batch, other):  # the one that was saved goes on too
        answers = stream.push({name: frames[-5:] for name, frames in videos.items()})
        for name, scores in answers.items():
            np.testing.assert_allclose(scores, expected[name][-5:], **NEAR)
    fresh = StreamBatch(folder)
    fresh.join("a")
    assert differs(fresh.push({"a": videos["a"][-5:]})["a"], expected["a"][-5:])
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


@pytest.mark.slow
def test_another_process_goes_on(folder, tmp_path):
    frames = draw(9)
    batch = StreamBatch(folder, window=3)
    batch.join("a")
    batch.push({"a": frames[:4]})
    batch.save(tmp_path / "s.safetensors")
    np.save(tmp_path / "rest.npy", frames[4:])
    code = """
import sys, numpy as np
from pathlib import Path
from training.movinet.stream import StreamBatch
folder, work = map(Path, sys.argv[1:])
batch = StreamBatch(folder, window=3)
batch.restore(work / "s.safetensors")
np.save(work / "answers.npy", batch.push({"a": np.load(work / "rest.npy")})["a"])
"""
    subprocess.run([sys.executable, "-c", code, folder, tmp_path], check=True, timeout=80)
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), alone(folder, frames, 3)[4:], **NEAR)


def test_foreign_states_are_refused(folder, tmp_path, make_model):
    path = tmp_path / "s.safetensors"
    batch = StreamBatch(folder, window=3)
    batch.join("a")
    batch.push({"a": draw(2)})
    batch.save(path)
    same_shapes = StreamBatch(make_model(tmp_path / "other", classes=CLASSES, seed=1), window=3)
    same_shapes.join("mine")
    with pytest.raises(ConfigError, match=r"s\.safetensors: the states are of the model \w{12}, this one is \w{12}"):
        same_shapes.restore(path)
    assert same_shapes.names == ["mine"]
    for window in (None, 4):
        with pytest.raises(ConfigError, match=r"the window 3, this stream has (null|4); open it with the same"):
            StreamBatch(folder, window=window).restore(path)
    for content, words in (
        (b"no such thing", "holds no states of a stream"),
        ((folder / "model.safetensors").read_bytes(), "`save` writes such files"),
        (path.read_bytes()[:-40], "holds no states of a stream"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            StreamBatch(folder, window=3).restore(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="none"):
        StreamBatch(folder).restore(tmp_path / "none")
    StreamBatch(folder, window=3).restore(path)


def test_a_batch_without_videos_is_saved_too(folder, tmp_path):
    batch = StreamBatch(folder, window=1)
    batch.save(tmp_path / "s")
    batch.join("a")
    batch.restore(tmp_path / "s")
    assert batch.names == []
    assert batch.push({}) == {}


def test_a_window_forgets_what_is_far_and_no_window_does_not(folder):
    """Nothing reaches further back than three means of 3 frames and convolutions of 5 and 3: 12 frames."""
    start, rest = draw(6, seed=1), draw(24, seed=2)
    bright = np.clip(start.astype(int) + 90, 0, 255).astype(np.uint8)
    answers = {
        window: [alone(folder, np.concatenate([s, rest]), window) for s in (start, bright)] for window in (3, None)
    }
    one, other = answers[3]
    assert differs(one[:7], other[:7])
    np.testing.assert_allclose(one[-8:], other[-8:], **NEAR)
    assert differs(*(scores[-8:] for scores in answers[None]))
    # As long as the window is not full, it changes nothing; then it does.
    np.testing.assert_allclose(one[:3], answers[None][0][:3], **NEAR)
    assert differs(one[3:], answers[None][0][3:])


def test_what_cannot_stream_is_refused(tmp_path, make_model, folder):
    base = make_model(tmp_path / "base", "movinet_train")
    with pytest.raises(ConfigError, match=r"base: a base MoViNet sees whole clips and cannot stream; name a model"):
        open_stream(base)
    with pytest.raises(ConfigError, match=r"other: a \w+ sees whole clips and cannot stream"):
        StreamBatch(make_model(tmp_path / "other", "resnet_rs_train"))
    with pytest.raises(ConfigError, match="the window must have at least one frame, got 0"):
        open_stream(folder, window=0)
    # A causal net that was trained on whole clips streams, one answer per frame whatever its crops at evaluation.
    causal = make_model(tmp_path / "causal", "movinet_train", variant="stream", transform={"eval_crops": 3})
    assert open_stream(causal).push(draw(3)).shape == (3, 2)


def test_stride_is_that_of_the_frames_the_net_was_shown(tmp_path, make_model):
    half = open_stream(make_model(tmp_path / "half", "movinet_half", variant="stream", member="1"))
    assert half.stride == 2
    assert half.push(draw(3)).shape == (3, 2)


def live_bytes() -> int:
    """Return the memory of all tensors of this process."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # not those that compilers leave, which have no memory
    storages = {t.untyped_storage() for t in gc.get_objects() if type(t) in kinds and not t.is_meta}
    return sum(dict((storage.data_ptr(), storage.nbytes()) for storage in storages).values())


def test_the_state_does_not_grow(folder, tmp_path):
    """400 pushes leave no tensor behind, and what is saved has the same size."""
    stream = open_stream(folder)
    size = stream.state_bytes
    frames = draw(1, 120, 160)
    stream.push(frames)
    stream.batch.save(tmp_path / "first")
    before = live_bytes()
    for _ in range(400):
        stream.push(frames)
    assert live_bytes() == before
    stream.batch.save(tmp_path / "last")
    assert stream.state_bytes == size
    assert (tmp_path / "last").stat().st_size == (tmp_path / "first").stat().st_size
    assert size < (tmp_path / "first").stat().st_size < size + 4096
    held = [torch.from_numpy(frames.copy()) for _ in range(3)]  # the control: what is kept is seen
    assert live_bytes() == before + len(held) * frames.nbytes


@pytest.mark.slow
def test_the_process_does_not_grow(folder):
    """Resident memory of a fresh process, 50 pushes to 400; then with one frame kept per push, as a control."""
    code = """
import sys, numpy as np, torch
from pathlib import Path
from training.movinet.live.session import resident_bytes
from training.movinet.stream import open_stream
torch.set_num_threads(1)
stream, frames = open_stream(Path(sys.argv[1])), np.full((1, 120, 160, 3), 99, np.uint8)
sizes, held = [], []
for number in range(400):
    if number == 50:
        sizes.append(resident_bytes())
    stream.push(frames)
sizes.append(resident_bytes())
for number in range(350):
    held.append(frames.copy())
    stream.push(held[-1])
print(*sizes, resident_bytes())
"""
    if resident_bytes() is None:
        pytest.skip("this system does not tell resident memory")
    result = subprocess.run([sys.executable, "-c", code, folder], check=True, timeout=80, capture_output=True)
    first, last, kept = map(int, result.stdout.split())
    assert last - first < 5e6
    assert kept - last > 15e6


def test_state_bytes_follow_from_net_and_window(folder):
    """Inputs of 32 have 4 x 4 places after three strides; the convolutions keep 4 and 2 frames of 24 channels there.

    Means are of 16, 24 and 24 channels: their sums, or all frames of the window but the newest. And one count.
    """
    buffers, means, count = (4 + 2) * 24 * 4 * 4 * 4, (16 + 24 + 24) * 4, 8
    for window, kept in ((None, 1), (1, 0), (2, 1), (5, 4)):
        assert open_stream(folder, window=window).state_bytes == buffers + kept * means + count


def test_errors_leave_the_states_alone(folder):
    frames = draw(6)
    batch = StreamBatch(folder)
    batch.join("a", "b")
    batch.push({"a": frames[:3], "b": frames[:3]})
    with pytest.raises(KeyError, match="no video 'c' in the batch; a, b joined"):
        batch.push({"a": frames[3:], "c": frames[3:]})
    with pytest.raises(KeyError, match="no video 'c'"):
        batch.leave("a", "c")
    for names in (("c", "a"), ("c", "c")):
        with pytest.raises(ValueError, match=f"the video '{names[1]}' is in the batch already"):
            batch.join(*names)
    with pytest.raises(ValueError, match=r"same number of frames, at least one, got \[2, 3\]"):
        batch.push({"a": frames[3:], "b": frames[3:5]})
    with pytest.raises(ValueError, match=r"at least one, got \[0\]"):
        batch.push({"a": frames[:0]})
    for wrong in (frames.astype(np.float32), frames[0], frames[..., :1], frames[:, :0]):
        with pytest.raises(ValueError, match=r"the frames of 'b' must be uint8 \(T,H,W,3\), got "):
            batch.push({"a": frames[:6], "b": wrong})
    assert batch.names == ["a", "b"]
    answers = batch.push({"b": frames[3:], "a": frames[3:]})
    for name in ("a", "b"):
        np.testing.assert_allclose(answers[name], alone(folder, frames)[3:], **NEAR)


def test_frames_may_be_views_that_cannot_be_written_into(folder):
    """A decoder's picture is read-only, and a turned one has its lines backwards."""
    frames = draw(4, 48, 40)
    turned = np.rot90(frames, 3, axes=(1, 2))
    turned.setflags(write=False)
    batch = StreamBatch(folder)
    batch.join("a", "b")
    answers = batch.push({"a": turned, "b": frames})
    np.testing.assert_allclose(answers["a"], alone(folder, turned.copy()), **NEAR)
    assert differs(answers["a"], answers["b"])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_file_gives_what_the_loader_gives(tmp_path, make_model, mp4_encoder, stride):
    """Same pixels, same crop, same frames: four frames of the clip, seen one by one, are what `predict` says."""
    model = make_model(tmp_path / "m", classes=CLASSES, data={"stride": stride})
    frames = draw(3 * stride + 1, 48, 80)
    frames[..., 0] //= 2  # channels are not alike
    frames[:, :, :24] = 255 - frames[:, :, :24]  # nor is what a crop leaves out
    path = tmp_path / "clip.mp4"
    mp4_encoder(frames, path)
    with LiveReader(str(path)) as reader:
        answers = list(LiveSession(open_stream(model), reader, top=3).answers())
    assert [answer.frame for answer in answers] == list(range(0, 3 * stride + 1, stride))
    last = dict(zip(answers[-1].classes, answers[-1].scores, strict=True))
    expected = VideoClassifier(model).scores(path)
    np.testing.assert_allclose([last[name] for name in CLASSES], expected, **NEAR)
    assert differs(alone(model, frames[::stride, ..., ::-1])[-1], expected)  # the control: channels in reverse
