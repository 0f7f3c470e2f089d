"""The early start of Prefect's temporary server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import launch

PROGRAM = """
import sys
from infra import launch
sys.modules["toy"] = sys.modules["__main__"]
def main(arguments):
    import os
    launch.wait_for_server()
    print(os.environ.get("PREFECT_API_URL"), *arguments)
    return 7
sys.exit(launch.run("toy", {arguments!r}))
"""


def program(tmp_path: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path), **environ}
    code = PROGRAM.format(arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_a_configured_server_is_used(tmp_path: Path) -> None:
    result = program(tmp_path, "x", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert (result.returncode, result.stdout) == (7, "http://127.0.0.1:9/api x\n"), result.stderr


def test_the_server_of_the_active_profile_is_used(tmp_path: Path) -> None:
    profiles = 'active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n[profiles.own]\n'
    (tmp_path / "profiles.toml").write_text(profiles)
    assert program(tmp_path, "x").stdout == "None x\n"  # Prefect itself reads the profile


@pytest.mark.parametrize(("profile", "expected"), [("team", True), ("own", False), ("none", False)])
def test_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, expected: bool) -> None:
    (tmp_path / "profiles.toml").write_text('[profiles.team]\nPREFECT_API_URL = "http://h/api"\n[profiles.own]\n')
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_PROFILE", profile)
    assert launch._profile_has_server() is expected


def test_help_needs_no_server(tmp_path: Path) -> None:
    assert program(tmp_path, "--help").stdout == "None --help\n"


@pytest.mark.slow
def test_a_temporary_server_starts_and_ends_with_the_program(tmp_path: Path) -> None:
    result = program(tmp_path)
    assert result.returncode == 7, result.stderr
    assert result.stdout.startswith("http://127.0.0.1:")
    port = result.stdout.split(":")[-1].split("/")[0]
    servers = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    import time

    deadline = time.monotonic() + 30
    while f"--port {port} " in servers and time.monotonic() < deadline:
        time.sleep(0.2)
        servers = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"--port {port} " not in servers


def test_a_server_that_dies_is_an_error_with_its_log(tmp_path: Path) -> None:
    result = program(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL="nonsense://")
    assert result.returncode == 1
    assert "temporary server ended with status" in result.stderr
    assert "nonsense" in result.stderr
