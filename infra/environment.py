"""Environment variables that the tools of the chain need, set by entry points before a tool is imported.

Every value is only a default: a variable that is already set wins. Child processes inherit them.
"""

import os
from collections.abc import Mapping, MutableMapping

DEFAULTS: Mapping[str, str] = {
    # Nothing is sent anywhere; Prefect's server otherwise logs an error when it is offline.
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Prefect's temporary server needs more than its 20 s on a loaded machine, the first time most of all.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # `ray.init` turns token authentication on, clients leave it off: one value for both.
    "RAY_AUTH_MODE": "disabled",
    # The default of 2 s loses a checkpoint that was reported just before a worker died and adds seconds to each fit.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Otherwise every line of a worker is printed twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Workers otherwise start in another folder than the driver.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # A task without a GPU otherwise loses sight of the machine's GPUs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Threads that wait must not spin: loader, convolutions and encoders share the cores.
    "OMP_WAIT_POLICY": "passive",
}


def apply_defaults(environ: MutableMapping[str, str] | None = None) -> None:
    """Set each variable of `DEFAULTS` that is not set yet, in `os.environ` unless another mapping is given."""
    target = os.environ if environ is None else environ
    for name, value in DEFAULTS.items():
        target.setdefault(name, value)
