import json

import av
import pytest
from typer.testing import CliRunner

from training.core.registration import Registry
from training.core.registry_cli import app

# Whichever test comes first waits for the session's project to be trained, evaluated and registered.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def fovea(registered, monkeypatch):
    """Run a command in the registered project."""
    monkeypatch.setenv("FOVEA_ROOT", str(registered.root))
    monkeypatch.delenv("FOVEA_MLFLOW_TRACKING_URI", raising=False)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def folder(make_clip, tmp_path):
    """Two good videos, one broken, one that is none."""
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    (tmp_path / "videos" / "red.mp4").write_bytes(make_clip((200, 40, 40), 900, side=64, sound=True))
    (tmp_path / "videos" / "sub" / "blue.MP4").write_bytes(make_clip((40, 40, 200), 901))
    (tmp_path / "videos" / "notes.txt").write_text("not a video")
    return tmp_path / "videos"


def test_predict_a_folder(fovea, folder):
    result = fovea("predict", "adafocus-demo/1", folder, "--top", 2)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["red", "blue"]
    assert "adafocus-demo/1 (challenger, not gated)" in result.stderr


def test_predict_goes_on_after_a_broken_file_and_says_so(fovea, folder):
    (folder / "broken.mp4").write_bytes(b"no" * 100)
    result = fovea("predict", "adafocus-demo/1", folder, "--json")
    assert result.exit_code == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["label"] for row in rows] == ["", "red", "blue"]
    assert "broken.mp4" in rows[0]["error"]
    assert rows[0]["score"] is None
    assert "1 of 3 videos could not be predicted" in result.stderr


def test_predict_by_model_folder_with_overlay(fovea, registered, folder, tmp_path):
    model = registered.settings.runs / "demo" / "adafocus_finetune"
    result = fovea("predict", model, folder / "red.mp4", "--overlay", tmp_path / "o.mp4")
    assert result.exit_code == 0, result.output
    assert "sound copied" in result.stderr
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "adafocus-demo/1", "gone.mp4"), "gone.mp4 does not exist"),
        (("predict", "nothing", "."), "has no videos"),
        (("predict", "adafocus-demo", "README"), "README does not exist"),
        (("lineage", "nothing"), "no registered model 'nothing'"),
        (("register", "adafocus_eval"), "not a stage instance"),
        (("promote", "nothing"), "no model is registered for data set 'nothing'"),
    ],
)
def test_user_errors_are_one_line(fovea, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    result = fovea(*words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_overlay_takes_one_video(fovea, folder, tmp_path):
    result = fovea("predict", "adafocus-demo/1", folder, "--overlay", tmp_path / "o.mp4")
    assert result.exit_code == 2


def test_finish_promotes_and_reports_and_can_be_repeated(fovea, registered):
    registry = Registry.open(registered.settings)
    try:
        first = fovea("finish", "demo")
        assert first.exit_code == 0, first.output
        assert "adafocus-demo/1 is champion of adafocus-demo now" in first.stdout
        assert (registered.settings.reports / "index.html").exists()
        again = fovea("finish", "demo")
        assert again.exit_code == 0
        assert "no challenger; adafocus-demo/1 stays champion (passed)" in again.stdout
        rows = json.loads(fovea("promote", "demo", "--json").stdout)
        assert rows[0]["champion"] == "1"
        assert fovea("promote", "demo", "--check").exit_code == 0
        tree = json.loads(fovea("lineage", "adafocus-demo", "--json").stdout)
        assert tree["facts"]["aliases"] == "champion"
    finally:
        version = registry.version("adafocus-demo", "1")
        for alias in version.aliases:
            registry.drop_alias("adafocus-demo", alias)
        registry.set_alias(version, "challenger")
        for tag in ("gate", "gate_reason", "gate_against"):
            registry._mlflow.delete_model_version_tag(version.name, version.version, tag)
        registry.describe(version, "")


def test_finish_without_evaluations_says_so(fovea):
    result = fovea("finish", "other")
    assert result.exit_code == 0
    assert "nothing to register" in result.stderr
