"""`doctor`: true findings on this machine, and failures that say what to do."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import Settings
from tasks.ops import doctor
from tasks.ops.doctor import Finding, examine, print_findings


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_this_machine_is_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "PREFECT_API_URL", "FOVEA_FFMPEG"):
        monkeypatch.delenv(name, raising=False)
    findings = examine(Settings(root=tmp_path))
    assert [f for f in findings if f.level == "fail"] == []
    found = by_subject(findings)
    assert "imageio" in found["ffmpeg"].detail
    assert "libx264, aac" in found["encoders"].detail
    assert found["project"].level == "warn"
    assert {"PyAV", "torch", "ray", "prefect", "fastapi", "mlflow", "dvc", "gpu", "cores", "disk"} <= set(found)


def test_dead_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    settings = Settings(root=tmp_path)
    found = by_subject([*doctor._ray(settings), *doctor._prefect(settings)])
    for subject in ("ray cluster", "prefect server"):
        assert found[subject].level == "fail"
        assert found[subject].remedy
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert by_subject(doctor._ray(Settings(root=tmp_path)))["ray cluster"].level == "ok"


@pytest.mark.parametrize(
    ("script", "subject", "message"),
    [
        ("exit 3", "ffmpeg", "does not run"),
        ("echo 'ffmpeg version 7.0'; echo ' V..... libvpx-vp9  VP9'", "encoders", "libx264, aac missing"),
        ("echo 'frobnicator 1.0'", "ffmpeg", "is no ffmpeg"),
    ],
)
def test_unusable_ffmpeg(tmp_path: Path, script: str, subject: str, message: str) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    bad = [f for f in doctor._ffmpeg(Settings(root=tmp_path, ffmpeg=str(fake))) if f.level == "fail"]
    assert bad[0].subject == subject
    assert message in bad[0].detail
    assert bad[0].remedy


def test_a_broken_check_is_a_finding(tmp_path: Path) -> None:
    findings = examine(Settings(root=tmp_path / "missing"), [doctor._machine, doctor._gpu])
    assert (findings[0].level, findings[0].subject) == ("fail", "machine")
    assert by_subject(findings)["gpu"].level != "fail"


def test_exit_code_and_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_findings([Finding("ok", "a", "1"), Finding("warn", "bb", "2", "do that")]) == 0
    assert print_findings([Finding("fail", "a", "1", "do this")]) == 1
    text = capsys.readouterr().out
    assert "→ do that" in text
    assert "1 to repair" in text


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from infra.settings import Settings; import tasks.ops.doctor as d;"
        "d.examine(Settings(), [c for c in d.CHECKS if c is not d._decoders]);"  # that one asks a process of its own
        "bad = {'torch', 'ray', 'prefect', 'mlflow'} & set(sys.modules); print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stdout + done.stderr
