"""A video that is decoded as far as the policy wants: the same answer as from the whole video, and no more read."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.adamml.config import data_for
from training.adamml.system import AdaMMLSystem
from training.core.checkpoint import save_model
from training.core.data import load_clip
from training.core.decode import DecodeError
from training.core.evaluate import evaluate_shards
from training.core.lazy_video import LazyVideo, MiscountError
from training.core.sample_reader import clip_of, load_pictures, read_samples
from training.core.serving import VideoClassifier

CPU = torch.device("cpu")
CLASSES = ("blue", "green", "red")
KINDS = {
    "rgb+audio": (("rgb", "audio"), {}, {}),
    "rgb+flow": (("rgb", "flow"), {"flow": "rgbdiff"}, {"stack": 3, "flow": True, "sound": None}),
    "all": (("rgb", "flow", "audio"), {"flow": "rgbdiff"}, {"stack": 3, "flow": True}),
}


def shake(system: torch.nn.Module) -> None:
    """Random norms and a policy whose decisions differ from segment to segment."""
    generator = torch.Generator().manual_seed(1)
    for module in system.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    for parameter in system.net.policy.parameters():
        parameter.data.mul_(3)


@pytest.fixture
def make(small_model, small_data):
    """Makes a system of a kind; keywords replace fields of its model."""

    def system_of(kind: str, **changes: Any) -> AdaMMLSystem:
        modalities, proxies, block = KINDS[kind]
        # Wide enough that not all of the joint feature is dead.
        model = small_model(*modalities, proxies=proxies, **{"joint": 96, "hidden": 16, **changes})
        torch.manual_seed(0)
        system = AdaMMLSystem(model, data_for(small_data(**block), model.inputs), CLASSES).eval()
        shake(system)
        return system

    return system_of


@pytest.fixture(scope="session")
def content(clip_drawer, mp4_encoder, tmp_path_factory) -> bytes:
    """80 frames at 10 per second with sound, a key frame every 12."""
    noise = np.random.default_rng(0).normal(0, 3000, 8 * 24000) * np.linspace(0, 2, 8 * 24000)
    frames = clip_drawer(1, 1, 48, 64, 80)
    path = tmp_path_factory.mktemp("v") / "clip.mp4"
    return mp4_encoder(frames, path, "-g", "12", "-bf", "2", sound=noise.astype(np.int16))


@pytest.fixture(scope="session")
def silent(clip_drawer, mp4_encoder, tmp_path_factory) -> bytes:
    return mp4_encoder(clip_drawer(2, 2, 40, 56, 45), tmp_path_factory.mktemp("v") / "clip.mp4")


@dataclass(frozen=True)
class Both:
    """The same video by both ways."""

    whole: Any
    lazy: Any
    batch: Any
    seen: Any
    video: LazyVideo


def both(system: AdaMMLSystem, video: bytes, key: str = "0", lazy: LazyVideo | None = None) -> Both:
    lazy = lazy or LazyVideo(video, system.data, "pyav", key=key)
    with torch.inference_mode():
        batch = system.prepare(load_clip(video, system.data, decoder="pyav", key=key), train=False)
        answer = system.predict_lazily(lazy, CPU)
        assert answer is not None
        return Both(system.predict(batch), answer[0], batch, answer[1], lazy)


def check_same(made: Both) -> None:
    torch.testing.assert_close(made.lazy.scores_BK, made.whole.scores_BK, atol=1e-5, rtol=0)
    assert made.lazy.extras.keys() == made.whole.extras.keys()
    for name in ("choices", "available"):
        assert torch.equal(made.lazy.extras[name], made.whole.extras[name])
    torch.testing.assert_close(made.lazy.extras["use_logits"], made.whole.extras["use_logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.lazy.extras["gmac"], made.whole.extras["gmac"])
    for name in ("seed_B", "box_B4", "flip_B", "label_B", "valid_B"):
        assert torch.equal(getattr(made.seen, name), getattr(made.batch, name)), name
    assert made.seen.key == made.batch.key
    assert made.seen.video_BCTHW.shape[-2:] == made.batch.video_BCTHW.shape[-2:]


def at_middle(system: AdaMMLSystem, video: bytes, place: int = 0) -> AdaMMLSystem:
    """Let a system use one modality on some segments of a video only."""
    logits = both(system, video).whole.extras["use_logits"][0, :, place].sort().values
    assert logits.diff().min() > 1e-3, "segments look alike to the policy: this would prove nothing"
    system.mode = "threshold"
    system.threshold = torch.sigmoid(logits[:2].mean()).item()
    return system


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["argmax", "sample", "middle"])
def test_the_same_answer_as_from_the_whole_video(make, content, silent, kind, mode):
    for video in (content, silent):
        system = at_middle(make(kind), content) if mode == "middle" else make(kind)
        if mode == "sample":
            system.mode = "sample"
        check_same(both(system, video, key="some video"))


def test_sampled_decisions_are_those_of_the_videos_name(make, content):
    system = make("rgb+audio")
    system.mode = "sample"
    choices = []
    for number in range(8):
        made = both(system, content, key=f"video-{number}")
        check_same(made)
        choices.append(made.lazy.extras["choices"])
    assert any(not torch.equal(choices[0], other) for other in choices)


@pytest.mark.parametrize("mean", ["segments", "used"])
def test_least_one_and_shares_of_what_was_used(make, content, mean):
    system = make("rgb+audio", least_one=True, mean=mean)
    system.mode, system.threshold = "threshold", 1 - 1e-9
    made = both(system, content)
    check_same(made)
    assert made.lazy.extras["choices"].sum() == 1


def policy_frames(video: LazyVideo, stack: int) -> set[int]:
    return {int(p) + i for p in video.positions_VT[:, ::2].ravel() for i in range(stack)}


@pytest.mark.parametrize(("kind", "stack", "place"), [("rgb+audio", 1, 0), ("rgb+flow", 3, 0), ("rgb+flow", 3, 1)])
def test_only_what_is_looked_at_is_decoded(make, content, kind, stack, place):
    system = at_middle(make(kind), content, place)
    made = both(system, content)
    check_same(made)
    used_SK = made.lazy.extras["choices"][0].numpy()
    assert 0 < used_SK[:, place].sum() < 3
    video = made.video
    wanted = policy_frames(video, stack) | set(video.witness)
    wanted |= set(video.positions_VT[used_SK[:, 0]].ravel().tolist())
    fields = 0
    if kind == "rgb+flow":
        at = {int(p) + i for p in video.positions_VT[used_SK[:, 1]].ravel() for i in range(stack - 1)}
        fields = len(at)
        wanted |= at | {number + 1 for number in at}
    assert (video.decoded, video.extracted) == (len(wanted), fields)
    whole = {int(p) + i for p in video.positions_VT.ravel() for i in range(stack)}
    if place == kind.count("flow"):
        assert video.decoded < len(whole), (used_SK, sorted(wanted), sorted(whole))


@pytest.mark.parametrize(("kind", "stack"), [("rgb+audio", 1), ("rgb+flow", 3)])
def test_nothing_chosen_and_everything_chosen(make, content, kind, stack):
    system = make(kind)
    system.mode = "threshold"
    system.threshold = 1 - 1e-12
    made = both(system, content)
    check_same(made)
    assert not made.lazy.extras["choices"].any()
    video = made.video
    # The last frame of the evaluation bears witness that there are as many frames as packets.
    assert video.decoded == len(policy_frames(video, stack) | set(video.witness))
    assert len(set(video.witness) - policy_frames(video, stack)) == 1
    assert video.extracted == 0
    known = LazyVideo(content, system.data, "pyav", num_frames=80)
    both(system, content, lazy=known)
    assert known.witness == ()
    assert known.decoded == len(policy_frames(known, stack))

    system.threshold = 1e-12
    made = both(system, content)
    check_same(made)
    assert made.lazy.extras["choices"].all()
    whole = {int(p) + i for p in made.video.positions_VT.ravel() for i in range(stack)}
    assert made.video.decoded == len(whole)
    fields = {int(p) + i for p in made.video.positions_VT.ravel() for i in range(stack - 1)}
    assert made.video.extracted == (len(fields) if kind == "rgb+flow" else 0)


def test_a_video_without_sound_never_uses_it(make, silent):
    system = make("rgb+audio")
    system.mode, system.threshold = "threshold", 1e-12
    made = both(system, silent)
    check_same(made)
    assert made.lazy.extras["choices"][0].tolist() == [[True, False]] * 3
    assert not made.lazy.extras["available"][0, :, 1].any()


class Shuffled(LazyVideo):
    """Mistakes one frame for another: the control."""

    def pictures(self, frames):
        return super().pictures(np.asarray(frames, dtype=np.int64)[::-1])


def test_frames_in_another_order_give_another_answer(make, content):
    system = make("rgb+flow")
    system.mode, system.threshold = "threshold", 1e-12
    wrong = both(system, content, lazy=Shuffled(content, system.data, "pyav"))
    assert (wrong.lazy.scores_BK - wrong.whole.scores_BK).abs().max() > 1e-3


# --- served -------------------------------------------------------------------------------------


@pytest.fixture
def saved(make, small_data, tmp_path):
    """Saves a system as the fine-tuned model that is served."""

    def save(system: AdaMMLSystem, kind: str) -> Path:
        block = small_data(**KINDS[kind][2], decoder="pyav")
        optim = {"name": "sgd", "lr": {"main": 0.1}, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0}
        fit = {"steps": 1, "seed": 0, "optim": optim, "clip_grad_norm": None, "ema_decay": None}
        fit |= {"precision": "fp32", "eval_every": 0, "keep": "last"}
        model = system.net.config.model_dump(mode="json")
        data = data_for(block, system.net.config.inputs).model_dump(mode="json")
        folder = tmp_path / "model"
        save_model(
            folder,
            system.export_state(),
            stage="adamml_finetune",
            dataset="tiny",
            config={"model": model, "data": data, "price": 1.0, "fit": fit},
            classes=CLASSES,
            decoder="pyav",
        )
        return folder

    return save


class Counting(VideoClassifier):
    """Remembers which videos were decoded on demand."""

    lazily: int = 0

    def _lazily(self, source, key):
        answer = super()._lazily(source, key)
        self.lazily += answer is not None
        return answer


def test_the_served_model_answers_as_its_evaluation(make, saved, tiny_shards, tmp_path):
    from infra.settings import Settings

    system = make("rgb+audio")
    classifier = Counting(saved(system, "rgb+audio"))
    config = classifier.model.data_config()
    settings = Settings(root=tmp_path, mlflow_tracking_uri=None, progress=False, device="cpu", train_cpus_per_worker=1)
    stored = evaluate_shards(classifier.model.system, tiny_shards, config, split="val", settings=settings).predictions
    samples = read_samples(tiny_shards, stored.key.tolist(), "val")
    choices = stored.extras["choices"]
    assert 0 < choices.sum() < choices.size, "nothing is skipped, or everything: this would prove nothing"
    for place, sample in enumerate(samples.values()):
        video = clip_of(sample, config)
        path = tmp_path / "clip.mp4"
        path.write_bytes(video)
        for source in (path, video):
            prediction, _ = classifier.forward(source)
            assert np.abs(prediction.scores_BK[0].numpy() - stored.scores[place]).max() < 1e-5
            assert np.array_equal(prediction.extras["choices"][0].numpy(), choices[place])
            assert classifier.classify(source).classes[0] == CLASSES[stored.scores[place].argmax()]
    paying = sum(LazyVideo(clip_of(sample, config), config, "pyav").pays for sample in samples.values())
    assert 0 < paying < len(samples), "some have key frames enough, some have one"
    assert classifier.lazily == 4 * paying
    other = np.roll(stored.scores, 1, axis=0)
    assert np.abs(other - stored.scores).max() > 1e-4, "control: videos have scores of their own"


def test_what_cannot_be_read_on_demand_is_read_whole(make, saved, content, jpgs_shards, tmp_path):
    system = make("rgb+audio")
    classifier = Counting(saved(system, "rgb+audio"))
    config = classifier.model.data_config()
    # Pictures in a row have no video to decode from.
    sample = next(iter(read_samples(jpgs_shards, ["clip-000"]).values()))
    packed = clip_of(sample, config)
    prediction, batch = classifier.forward(packed)
    assert classifier.lazily == 0
    assert batch.video_BCTHW.shape[2] == config.eval_frames
    with torch.inference_mode():
        raw = load_pictures(packed, config, decoder="pyav")
        want = classifier.model.system.predict(classifier.model.system.prepare(raw, train=False))
    assert torch.equal(prediction.scores_BK, want.scores_BK)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4 is not a file"):
        classifier.forward(tmp_path / "gone.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 50)
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        classifier.forward(broken)
    result = classifier.classify(broken)
    assert result.error.startswith("DecodeError")
    classifier.forward(content)
    assert classifier.lazily == 1


def test_reading_on_demand_pays_with_many_key_frames_or_where_flow_is_extracted(make, content, silent):
    flow = make("rgb+flow").data
    for video, enough in ((content, True), (silent, False)):
        assert LazyVideo(video, make("rgb+audio").data, "pyav").pays is enough
        assert LazyVideo(video, flow, "pyav").pays


def test_fewer_frames_than_packets_give_the_answer_of_the_whole_video(make, saved, content, tmp_path):
    """Where the policy looks there is a picture at each place, but its places are those of a longer video."""
    import imageio_ffmpeg

    system = make("rgb+audio")
    system.mode, system.threshold = "threshold", 1 - 1e-12
    # VP8 has packets that are referred to and never shown.
    target = tmp_path / "clip.webm"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=10:d=3"]
    command += ["-c:v", "libvpx", "-b:v", "60k", "-auto-alt-ref", "1", "-lag-in-frames", "16"]
    command += ["-passlogfile", str(tmp_path / "log")]
    for last in (["-pass", "1", "-f", "null", "-"], ["-pass", "2", str(target)]):
        subprocess.run([*command, *last], check=True, timeout=60)
    short = LazyVideo(target, system.data, "pyav")
    assert short.num_frames == 32
    with torch.inference_mode(), pytest.raises(MiscountError, match="it has 30 frames, not 32"):
        system.predict_lazily(short, CPU)
    blind = LazyVideo(target, system.data, "pyav")
    blind.witness = ()
    with torch.inference_mode():
        unnoticed = system.predict_lazily(blind, CPU)
        assert unnoticed is not None
        batch = system.prepare(load_clip(target, system.data, decoder="pyav"), train=False)
        right = system.predict(batch)
    assert not torch.allclose(unnoticed[0].extras["use_logits"], right.extras["use_logits"], atol=1e-4), "control"
    system.mode = "argmax"
    classifier = Counting(saved(system, "rgb+audio"))
    prediction, _ = classifier.forward(target)
    assert classifier.lazily == 0
    torch.testing.assert_close(prediction.extras["use_logits"], right.extras["use_logits"])
