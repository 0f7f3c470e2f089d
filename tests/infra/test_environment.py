"""Defaults of the environment, and the files that repeat them."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from infra.environment import DEFAULTS, apply_defaults

ROOT = Path(__file__).parents[2]


def test_defaults_do_not_replace_what_is_set() -> None:
    environ = {"RAY_AUTH_MODE": "token"}
    apply_defaults(environ)
    assert environ["RAY_AUTH_MODE"] == "token"
    assert environ == {**DEFAULTS, "RAY_AUTH_MODE": "token"}


def test_importing_sets_nothing() -> None:
    code = "import os; before = dict(os.environ); import infra.environment; assert before == dict(os.environ)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_makefile_and_deployments_repeat_the_defaults() -> None:
    makefile = dict(re.findall(r"^export (\w+) \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert makefile == DEFAULTS
    content = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())
    # The worker's flows find a server by definition: no temporary one has to start.
    expected = {name: value for name, value in DEFAULTS.items() if "EPHEMERAL" not in name}
    for deployment in content["deployments"]:
        assert deployment["work_pool"]["job_variables"]["env"] == expected, deployment["name"]
