import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_specs.jpgs import pack_jpgs
from training.core.config import DataConfig, validate
from training.core.registration import Registry
from training.core.round_trip import predict_elsewhere, round_trip
from training.core.sample_reader import evaluated_clips, load_pictures, read_samples
from training.core.serving import VideoClassifier, copy_code, requirements
from training.core.serving_inputs import InputError, as_source, items_of, name_of

# Whichever test comes first waits for the session's project to be trained, evaluated and registered.
pytestmark = pytest.mark.timeout(300)

REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def stored(registered) -> Path:
    registry = Registry.open(registered.settings)
    return registry.fetch_model(registry.version("adafocus-demo", "1"), registered.root / "fetched")


@pytest.fixture(scope="module")
def clips(registered):
    run = registered.settings.runs / "demo" / "adafocus_eval"
    config = validate(DataConfig, json.loads((run / "config.json").read_text())["data"], "config")
    return evaluated_clips(registered.settings.shards / "demo", run / "predictions.npz", "test", 3, config)


def test_runs_in_another_folder_with_its_own_code(stored, clips, tmp_path):
    """Moved away from the store, in a process that cannot import this repository."""
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(stored, moved)
    paths = []
    for key, content in clips[0].items():
        paths.append(tmp_path / f"{key}.mp4")
        paths[-1].write_bytes(content)
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 50)
    answer = predict_elsewhere(moved, [*paths, tmp_path / "broken.mp4"])
    code = Path(answer["code"])
    assert code.is_relative_to(moved)
    assert not code.is_relative_to(REPOSITORY)
    *good, broken = answer["rows"]
    for row, expected in zip(good, clips[1].values(), strict=True):
        assert row["error"] == ""
        assert row["label"] == clips[2][int(expected.argmax())]
        assert row["score"] == pytest.approx(float(expected.max()), abs=1e-5)
        assert len(row["top_classes"]) == 4
    assert broken["label"] == ""
    assert "broken.mp4" in broken["error"]


def test_round_trip_notices_other_weights(registered, stored, clips, tmp_path):
    """Negative control: another model in the saved folder gives other scores."""
    moved = tmp_path / "model"
    shutil.copytree(stored, moved)
    other = registered.settings.runs / "demo" / "adafocus_pretrain/local" / "model"
    shutil.rmtree(moved / "artifacts" / "model")
    shutil.copytree(other, moved / "artifacts" / "model")
    result = round_trip(moved, clips[0], clips[1], clips[2])
    assert result.error == ""
    assert result.max_difference > 0.01


def test_round_trip_notices_damaged_weights(stored, clips, tmp_path):
    moved = tmp_path / "model"
    shutil.copytree(stored, moved)
    weights = moved / "artifacts" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    result = round_trip(moved, clips[0], clips[1], clips[2])
    assert "does not match the checksum" in result.error
    assert not result.same_class


def test_all_kinds_of_input_give_the_same_answer(stored, clips, tmp_path):
    classifier = VideoClassifier(stored / "artifacts" / "model")
    content = next(iter(clips[0].values()))
    path = tmp_path / "a clip.mp4"
    path.write_bytes(content)
    text = base64.b64encode(content).decode()
    answers = [
        classifier.predict_frame(given, top=2)
        for given in (
            pd.DataFrame({"video": [str(path)]}),
            pd.DataFrame({"video": [content]}),
            pd.DataFrame({"other": [1], "video": [text]}),
            {"video": [path]},
            {"video": text},
            [content],
            [{"video": str(path)}],
            np.array([str(path)]),
            "data:video/mp4;base64," + text,
            str(path),
            content,
        )
    ]
    for answer in answers:
        assert answer["error"].tolist() == [""]
        assert answer["top_classes"].tolist() == answers[0]["top_classes"].tolist()
        assert answer["top_scores"].tolist() == answers[0]["top_scores"].tolist()
        assert len(answer["top_classes"][0]) == 2
    assert answers[0]["video"][0] == str(path)
    assert answers[1]["video"][0] == f"bytes:{len(content)}"


def test_mlflow_pyfunc_takes_frames_and_parameters(stored, clips):
    """Through MLflow's own schema check, in this process."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(stored))
    content = next(iter(clips[0].values()))
    one = model.predict(pd.DataFrame({"video": [content]}), params={"top": 1})
    assert [len(x) for x in one["top_classes"]] == [1]
    two = model.predict([{"video": content}, {"video": base64.b64encode(content).decode()}])
    assert len(two) == 2
    assert two["score"][0] == two["score"][1]


def test_what_is_no_video_is_named(tmp_path):
    assert as_source(b"x") == b"x"
    with pytest.raises(InputError, match=r"'gone\.mp4' is not a file"):
        as_source("gone.mp4")
    with pytest.raises(InputError, match="got float"):
        as_source(1.5)
    with pytest.raises(InputError, match="column 'video'"):
        list(items_of({"clip": ["a.mp4"]}))
    assert name_of("x" * 2000) == "base64:2000"


def test_saved_code_is_sources_only_and_requirements_are_pinned(tmp_path):
    folders = copy_code(tmp_path)
    assert sorted(Path(f).name for f in folders) == ["data_specs", "infra", "training"]
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".py", ".yaml", ".txt", ".j2"}
    pins = requirements()
    assert any(pin.startswith("torch==") for pin in pins)
    assert all("==" in pin and "+" not in pin for pin in pins)


def test_samples_by_key(registered):
    shards = registered.settings.shards / "demo"
    samples = read_samples(shards, ["test-0007", "test-0001"], "test")
    assert list(samples) == ["test-0007", "test-0001"]
    assert json.loads(samples["test-0007"]["json"])["key"] == "test-0007"
    with pytest.raises(KeyError, match="train-0001"):
        read_samples(shards, ["train-0001"], "test")


def test_packed_jpeg_frames_are_read_like_a_video(registered, tmp_path):
    import cv2

    config = validate(DataConfig, registered._config("adafocus_eval", {}).data.model_dump(), "data")
    shades = [20, 80, 140, 200, 230]
    frames = [cv2.imencode(".jpg", np.full((40, 48, 3), shade, np.uint8))[1].tobytes() for shade in shades]
    exact = load_pictures(pack_jpgs(frames[:4]), config, decoder="pyav")
    assert exact.size_B2.tolist() == [[40, 48]]
    assert exact.frames_BTHWC.float().mean((0, 2, 3, 4)).round().int().tolist() == shades[:4]
    (tmp_path / "clip.mp4").write_bytes(pack_jpgs(frames[:4]))
    assert load_pictures(tmp_path / "clip.mp4", config, decoder="pyav").frames_BTHWC.equal(exact.frames_BTHWC)
    five = load_pictures(pack_jpgs(frames), config, decoder="pyav")
    assert five.frames_BTHWC.shape[1] == 4
