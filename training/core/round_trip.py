"""A saved model is tried out where only its own code can be imported, on clips that were evaluated."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.gate import RoundTrip

__all__ = ["predict_elsewhere", "round_trip"]

_CHILD = """
import json, os, sys
job = json.load(open(sys.argv[1]))
# The project's own installation (editable or not) must not help.
sys.meta_path = [f for f in sys.meta_path if not str(getattr(f, "__module__", "")).startswith("__editable__")]
sys.path = [p for p in sys.path if os.path.realpath(p) not in job["hidden"]]
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(job["model"])
table = model.predict({"video": job["clips"]}, params={"top": 100000})
import training
json.dump({"code": training.__file__, "rows": table.to_dict("records")}, open(job["answer"], "w"))
"""


def predict_elsewhere(saved: Path, clips: Sequence[Path], timeout_s: float = 600) -> dict[str, Any]:
    """Load a saved pyfunc in a new process, in another folder and with its own code, and predict.

    Returns:
        `code`: file from which the process took `training`; `rows`: answers, one per clip.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    hidden = [str(Path(__file__).resolve().parents[2])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        answer = folder / "answer.json"
        job = {
            "model": str(saved.absolute()),
            "clips": [str(clip.absolute()) for clip in clips],
            "answer": str(answer),
            "hidden": hidden,
        }
        (folder / "job.json").write_text(json.dumps(job))
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD, str(folder / "job.json")],
            cwd=folder,
            env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the saved model does not run by itself: {done.stderr.strip()[-800:]}")
        result: dict[str, Any] = json.loads(answer.read_text())
    return result


def round_trip(
    saved: Path, clips: Mapping[str, bytes], expected: Mapping[str, NDArray[np.float32]], classes: Sequence[str]
) -> RoundTrip:
    """Predict clips with the saved model in a process of its own and compare with the evaluation.

    Args:
        saved: pyfunc directory.
        clips: key → video bytes.
        expected: key → scores (K,) of the evaluation.
        classes: class names in the order of the scores.
    """
    with tempfile.TemporaryDirectory() as temporary:
        paths = {}
        for key, content in clips.items():
            paths[key] = Path(temporary) / f"{key}.mp4"
            paths[key].write_bytes(content)
        try:
            answer = predict_elsewhere(saved, list(paths.values()))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return RoundTrip(len(clips), float("inf"), False, str(error))
    code = Path(answer["code"]).resolve()
    if not code.is_relative_to(saved.resolve()):
        return RoundTrip(len(clips), float("inf"), False, f"the saved model took its code from {code}")
    largest, same = 0.0, True
    for key, row in zip(paths, answer["rows"], strict=True):
        if row["error"]:
            return RoundTrip(len(clips), float("inf"), False, f"clip {key}: {row['error']}")
        by_name = dict(zip(row["top_classes"], row["top_scores"], strict=True))
        scores = np.array([by_name[name] for name in classes])
        largest = max(largest, float(np.abs(scores - expected[key]).max()))
        # A detector that found nothing names no class.
        named = row["label"] or classes[int(np.argmax(scores))]
        same = same and named == classes[int(np.argmax(expected[key]))]
    return RoundTrip(len(clips), largest, same)
