"""MLflow's and Prefect's pages on loopback: `make ui`, `fovea ui`. Ctrl-C ends both."""

import contextlib
import os
import signal
import subprocess
import sys
import time

from infra.environment import apply_defaults
from infra.settings import Settings

MLFLOW_PORT = 5000
PREFECT_PORT = 4200


def commands(settings: Settings, mlflow_port: int, prefect_port: int) -> dict[str, list[str]]:
    """Return the command of each service by its address."""
    python = sys.executable
    store = settings.tracking_uri
    serve = [
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(mlflow_port),
        "--workers",
        "1",
        "--backend-store-uri",
        store,
    ]
    return {
        f"http://127.0.0.1:{mlflow_port}": [python, "-m", "mlflow", *serve],
        f"http://127.0.0.1:{prefect_port}": [
            *[python, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect_port)],
        ],
    }


def main(mlflow_port: int = MLFLOW_PORT, prefect_port: int = PREFECT_PORT) -> int:
    """Start both services, print their addresses, and end both when one ends or on Ctrl-C."""
    apply_defaults()
    settings = Settings()
    env = {**os.environ, "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
    running: dict[str, subprocess.Popen[bytes]] = {}
    # A service started in the background of a script inherits an ignored SIGINT; both get the default here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for address, command in commands(settings, mlflow_port, prefect_port).items():
            name = command[2]
            print(f"{name:<8} {address}", flush=True)
            running[name] = subprocess.Popen(
                command,
                cwd=settings.root,
                env=env,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C comes to us alone, and the whole group is ended below
            )
        print("ready in about 15 s; Ctrl-C ends both", flush=True)
        while all(process.poll() is None for process in running.values()):
            time.sleep(0.3)
        name, process = next((name, process) for name, process in running.items() if process.poll() is not None)
        print(f"error: {name} ended with status {process.returncode}; is its port taken?", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
