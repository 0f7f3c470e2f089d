"""The closing words of `make demo`, from a metrics file."""

import json
from pathlib import Path

import pytest

from infra.settings import Settings
from infra.summary import arms, main, text

METRICS = {
    "test/top1": 0.91,
    "test/gmac_per_video": 0.0123,
    "test/top1_random": 0.62,
    "test/gmac_per_video_random": 0.0123,
    "test/top1_center": 0.55,
    "test/gmac_per_video_center": 0.0123,
    "test/top1_fullframe": 0.93,
    "test/gmac_per_video_fullframe": 0.2,
}


def test_rows_follow_the_metrics() -> None:
    assert arms(METRICS)[0] == ("learned policy", 0.91, 0.0123)
    assert [title for title, *_ in arms({"test/top1": 1.0, "test/top1_center": 0.5})] == [
        "learned policy",
        "centre patches",
    ]
    with pytest.raises(ValueError, match="no test/top1"):
        arms({"val/top1": 1.0})


def test_text_names_figures_and_ways_on(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path)
    with pytest.raises(FileNotFoundError, match="fovea reproduce demo"):
        text(settings, "demo")
    run = settings.runs / "demo" / "adafocus_eval"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps(METRICS))
    lines = text(settings, "demo")
    assert "learned policy           91.0%    0.0123    0.0246" in lines
    assert "full-frame local net     93.0%    0.2000    0.4000" in lines
    assert "not written" in lines
    page = settings.reports / "index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    assert "reports/index.html" in text(settings, "demo")


def test_main_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOVEA_ROOT", str(tmp_path))
    assert main(["own"]) == 1
    assert "fovea reproduce own" in capsys.readouterr().err
