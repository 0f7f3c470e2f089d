"""Saved pipelines: what is in the folder, what is refused, and that they answer as before wherever they are loaded."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.settings import Settings
from training.autovideo.fitted import FittedPipeline, SavedPipelineError
from training.autovideo.pipeline import Pipeline, PipelineRun
from training.autovideo.values import Shards
from training.core.config import ConfigError
from training.core.evaluate import Predictions

pytestmark = pytest.mark.timeout(300)
Make = Callable[..., dict[str, Any]]
FILES = {
    "card.md",
    "checksums.json",
    "labels.json",
    "metrics.json",
    "models/net/model.json",
    "models/net/model.safetensors",
    "pipeline.yaml",
    "preprocessing.json",
    "resolved.yaml",
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fitted(ran: PipelineRun) -> FittedPipeline:
    return FittedPipeline.of(ran)


@pytest.fixture
def saved(fitted: FittedPipeline, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="session")
def video(videos: Path) -> Path:
    return videos / "green" / "g1_4.mp4"


def test_what_a_folder_holds(saved: Path, fitted: FittedPipeline, ran: PipelineRun) -> None:
    assert files_of(saved) == FILES, "no pickle, and nothing else either"
    for path in saved.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:4]
            assert head[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), f"{path} is a pickle"
            assert head != b"PK\x03\x04", f"{path} is an archive, maybe of torch.save"
    assert json.loads((saved / "labels.json").read_text()) == {"classes": ["blue", "green", "red"]}
    assert json.loads((saved / "metrics.json").read_text()) == ran.metrics()
    preprocessing = json.loads((saved / "preprocessing.json").read_text())
    assert preprocessing["net"]["num_frames"] == 2
    card = (saved / "card.md").read_text()
    assert "blue, green, red" in card
    assert "recognition/tsn" in card
    assert str(ran.workspace) not in "".join(p.read_text() for p in saved.glob("*.json"))
    sums = json.loads((saved / "checksums.json").read_text())
    assert set(sums["files"]) == FILES - {"checksums.json"}


def test_loaded_it_answers_as_before_and_as_produce(saved: Path, fitted: FittedPipeline, ran: PipelineRun) -> None:
    shards = ran.value("shards")
    assert isinstance(shards, Shards)
    loaded = FittedPipeline.load(saved)
    assert loaded.classes == fitted.classes == ("blue", "green", "red")
    assert loaded.metrics == fitted.metrics
    assert loaded.document == fitted.document
    before, after = fitted.produce(split="test"), loaded.produce(shards.folder, split="test")
    arrays, again = Predictions.load(before.files["test"]), Predictions.load(after.files["test"])
    assert list(arrays.key) == list(again.key)
    assert np.array_equal(arrays.scores, again.scores)
    # One video by itself is scored as in a batch: from the very bytes that are in the shard.
    (tar,) = sorted(shards.folder.glob("*-test-*.tar"))
    for key, scores in list(zip(arrays.key, arrays.scores, strict=True))[:3]:
        with tarfile.open(tar) as opened:
            member = opened.extractfile(f"{key}.mp4")
            assert member is not None
            content = member.read()
        assert loaded.scores(content) == pytest.approx(scores, abs=1e-5)


def test_one_video_by_path_text_and_bytes(saved: Path, video: Path) -> None:
    loaded = FittedPipeline.load(saved)
    by_path = loaded.predict(video)
    assert by_path.video == str(video)
    assert sorted(by_path.classes) == ["blue", "green", "red"]
    assert by_path.label == by_path.classes[0]
    assert list(by_path.scores) == sorted(by_path.scores, reverse=True)
    assert sum(by_path.scores) == pytest.approx(1, abs=1e-5)
    assert loaded.predict(str(video)) == by_path
    by_bytes = loaded.predict(video.read_bytes())
    assert by_bytes.scores == by_path.scores
    assert by_bytes.video == f"bytes:{video.stat().st_size}"
    assert loaded.predict(video, top=1).classes == by_path.classes[:1]
    (only,) = loaded.predict_many([video])
    assert only == by_path
    # The control: another video has other scores.
    other = loaded.predict(video.parents[1] / "red" / "g2_8.mp4")
    assert dict(zip(other.classes, other.scores, strict=True)) != dict(
        zip(by_path.classes, by_path.scores, strict=True)
    )


def test_a_video_that_cannot_be_read_is_named(saved: Path, video: Path, tmp_path: Path) -> None:
    loaded = FittedPipeline.load(saved)
    broken = tmp_path / "broken clip.mp4"
    broken.write_bytes(video.read_bytes()[:300])
    with pytest.raises(Exception, match=r"broken clip\.mp4"):
        loaded.predict(broken)
    with pytest.raises(Exception, match=r"missing\.mp4"):
        loaded.predict(tmp_path / "missing.mp4")
    with pytest.raises(Exception, match=r"broken clip\.mp4"):
        loaded.predict_many([video, broken])


@pytest.mark.parametrize("name", sorted(FILES - {"checksums.json"}))
def test_a_changed_file_is_refused(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(SavedPipelineError, match=f"{name} was changed"):
        FittedPipeline.load(saved)


def test_missing_and_added_files_are_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "models" / "net" / "more.pt").write_bytes(b"x")
    with pytest.raises(SavedPipelineError, match=r"models/net/more\.pt is not listed"):
        FittedPipeline.load(saved)
    (saved / "models" / "net" / "more.pt").unlink()
    (saved / "models" / "empty").mkdir()
    FittedPipeline.load(saved)  # the control; a folder without files is no file
    (saved / "labels.json").unlink()
    with pytest.raises(SavedPipelineError, match=r"labels\.json is missing"):
        FittedPipeline.load(saved)
    with pytest.raises(SavedPipelineError, match=r"no checksums\.json"):
        FittedPipeline.load(tmp_path)


def test_broken_checksums_are_refused(saved: Path) -> None:
    path = saved / "checksums.json"
    text = path.read_text()
    path.write_text(text[:50])
    with pytest.raises(SavedPipelineError, match=r"checksums\.json cannot be read"):
        FittedPipeline.load(saved)
    path.write_text(text.replace("autovideo/v1", "autovideo/v9"))
    with pytest.raises(SavedPipelineError, match="autovideo/v9"):
        FittedPipeline.load(saved)
    path.write_text(json.dumps({"format": "autovideo/v1"}))
    with pytest.raises(SavedPipelineError, match="lacks"):
        FittedPipeline.load(saved)
    path.write_text(text.replace('"digest": "', '"digest": "0'))
    with pytest.raises(SavedPipelineError, match="another digest"):
        FittedPipeline.load(saved)


def test_it_is_never_saved_over_something_else(fitted: FittedPipeline, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    fitted.save(other)  # an empty folder is none's
    assert files_of(other) == FILES
    (saved / "left.txt").write_text("from before")
    fitted.save(saved)  # an older pipeline is replaced as a whole
    assert files_of(saved) == FILES
    for name, text in (("notes.txt", "mine"), ("checksums.json", "{}"), ("checksums.json", "sums of another tool")):
        shutil.rmtree(other)
        other.mkdir()
        (other / name).write_text(text)
        with pytest.raises(SavedPipelineError, match="is no saved pipeline: choose another name"):
            fitted.save(other)
        assert (other / name).read_text() == text
    (tmp_path / "file").write_text("x")
    with pytest.raises(SavedPipelineError, match="choose another name"):
        fitted.save(tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "other", "file"}, "nothing half-written stays"


def test_a_loaded_pipeline_needs_shards_with_its_classes(
    saved: Path, ran: PipelineRun, tiny_shards: Path, shard_writer: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = FittedPipeline.load(saved)
    with pytest.raises(ConfigError, match="no shards"):
        loaded.produce()
    with pytest.raises(ConfigError, match="no split 'holdout'"):
        FittedPipeline.of(ran).produce(split="holdout")
    other = tmp_path / "other"
    shutil.copytree(tiny_shards, other)
    index = json.loads((other / "index.json").read_text())
    (other / "index.json").write_text(json.dumps({**index, "classes": ["one", "three", "two"]}))
    with pytest.raises(ConfigError, match="classes are not those"):
        loaded.produce(other)
    assert set(loaded.produce(tiny_shards, split="val").files) == {"val"}  # the control: the same classes, other videos


SCRIPT = """
import json, sys
from training.autovideo.fitted import FittedPipeline
loaded = FittedPipeline.load(__import__("pathlib").Path(sys.argv[1]))
__import__("os").chdir("/")
answer = loaded.predict(sys.argv[2])
print(json.dumps([answer.classes, answer.scores]))
"""


def test_a_new_process_in_another_folder_answers_the_same(
    saved: Path, fitted: FittedPipeline, video: Path, environment: dict[str, str], tmp_path: Path, last_json: Any
) -> None:
    expected = fitted.predict(video)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    saved.rename(moved)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "moved", str(video)],
        cwd=moved.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    classes, scores = last_json(done.stdout)
    assert tuple(classes) == expected.classes
    assert scores == pytest.approx(expected.scores, abs=1e-6)


def ensemble(short: Make, name: str, use: str, **settings: Any) -> dict[str, Any]:
    values = short(name)
    scores = {"splits": ["val", "test"]}
    values["steps"][3:] = [
        {**values["steps"][2], "id": "other", "use": "recognition/tsm"},
        {"id": "first", "use": "extractor/predictions", "in": ["net", "clip"], "with": scores},
        {"id": "second", "use": "extractor/predictions", "in": ["other", "clip"], "with": scores},
        {"id": "both", "use": use, "in": {"predictions": ["first", "second"]}, "with": settings},
        {"id": "judged", "use": "evaluator/topk", "in": {"predictions": "both"}, "with": {"splits": ["test"]}},
    ]
    values["outputs"] = ["both.predictions", "judged.metrics"]
    return values


@pytest.mark.parametrize(
    ("use", "settings"),
    [
        pytest.param("ensembler/weighted", {"weights": [3.0, 1.0]}, marks=pytest.mark.slow),
        ("ensembler/stacking", {}),
    ],
    ids=["weighted", "stacking"],
)
def test_an_ensemble_is_saved_with_its_members(
    short: Make, project: Settings, video: Path, tmp_path: Path, use: str, settings: dict[str, Any]
) -> None:
    run = Pipeline.from_dict(ensemble(short, use.replace("/", "_"), use, **settings)).run(settings=project)
    fitted = FittedPipeline.of(run)
    fitted.save(tmp_path / "both")
    names = files_of(tmp_path / "both")
    assert {"models/net/model.safetensors", "models/other/model.safetensors"} <= names
    assert not any(name.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib")) for name in names)
    loaded = FittedPipeline.load(tmp_path / "both")
    assert loaded.answers == "both"
    answer = loaded.predict(video)
    assert sorted(answer.classes) == ["blue", "green", "red"]
    assert loaded.scores(video) == pytest.approx(fitted.scores(video), abs=1e-6)
    # As in the run: the stored clips of the test split get the scores that the ensemble gave them there.
    both = run.value("both.predictions")
    shards = run.value("data")
    assert isinstance(shards, Shards)
    arrays = Predictions.load(both.files["test"])  # type: ignore[union-attr]
    (tar,) = sorted(shards.folder.glob("*-test-*.tar"))
    with tarfile.open(tar) as opened:
        member = opened.extractfile(f"{arrays.key[0]}.mp4")
        assert member is not None
        assert loaded.scores(member.read()) == pytest.approx(arrays.scores[0], abs=1e-5)
    with pytest.raises(ConfigError, match="joins several models"):
        loaded.produce()
