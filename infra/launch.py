"""Start of a program that runs a flow: Prefect's temporary server comes up while we still import and ask DVC.

Without a configured server Prefect starts a temporary one, but only when the flow is called, and imports the whole
server package into our process to do it. Starting the same command here, before Prefect is imported at all, saves
several seconds of every call; and since it runs on a lifeline, it ends with us even by `kill -9`.
"""

import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.environment import apply_defaults
from infra.processes import Supervised, supervise
from infra.startup import tame_collector

STARTUP_TIMEOUT_S = 180.0
"""The very first start creates the database: 20 s, more on a loaded machine."""

_server: "tuple[Supervised, str, Path] | None" = None


class ServerError(RuntimeError):
    """Prefect's temporary server did not come up; the message has the end of its log."""


def run(module: str, arguments: Sequence[str] | None = None) -> int:
    """Import a flow's module and run its `main(arguments)` with a server at hand; return the exit status.

    The server ends with this process and not before, since Prefect sends its last log lines when Python exits.
    """
    apply_defaults()
    tame_collector()
    # Each `main` says what matters itself; everything still goes to the server's log of the run.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not {"-h", "--help"} & set(given):
        _start_server()
    try:
        main: Callable[[Sequence[str]], int] = importlib.import_module(module).main
        return main(given)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def wait_for_server() -> None:
    """Return when the server that `run` started answers; at once when it started none.

    Raises:
        ServerError: it ended, or did not answer in `STARTUP_TIMEOUT_S`.
    """
    if _server is None:
        return
    process, address, log = _server
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log.read_text(errors="replace")[-2000:]
            raise ServerError(f"Prefect's temporary server ended with status {process.poll()}:\n{tail}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                log.unlink(missing_ok=True)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerError(
        f"Prefect's temporary server did not answer in {STARTUP_TIMEOUT_S:.0f} s; start one with "
        "`prefect server start` and set PREFECT_API_URL"
    )


def _start_server() -> None:
    global _server
    if os.environ.get("PREFECT_API_URL") or _profile_has_server():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    descriptor, name = tempfile.mkstemp(prefix="prefect-server-", suffix=".log")
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    # What Prefect itself sets for its temporary server: no pages, no background services.
    extra = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    process = supervise(command, env={**os.environ, **extra}, stdout=descriptor, stderr=subprocess.STDOUT)
    os.close(descriptor)
    address = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = address
    _server = (process, address, Path(name))


def _profile_has_server() -> bool:
    """Return whether the user's active Prefect profile names a server."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        content = tomllib.loads((home / "profiles.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return False
    active = os.environ.get("PREFECT_PROFILE", content.get("active", ""))
    profile = content.get("profiles", {}).get(active, {})
    return isinstance(profile, dict) and "PREFECT_API_URL" in profile
