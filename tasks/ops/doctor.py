"""`fovea doctor`: what this machine has for videos, training, tracking and storage, and what to do about gaps.

Nothing heavy is imported: versions come from package metadata, and what can only be known by importing
(torchcodec finds its libraries or not) is tried in a process of its own.
"""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from infra.settings import Settings

_ENCODERS = ("libx264", "aac")
_LOW_DISK_GB = 5
_LOW_MEMORY_GB = 4


class Finding(NamedTuple):
    """One line of the report."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    detail: str
    remedy: str = ""
    """What to do; empty when nothing has to be done."""


Check = Callable[[Settings], list[Finding]]


def examine(settings: Settings, checks: Sequence[Check] | None = None) -> list[Finding]:
    """Look at this machine. A check that breaks is a finding itself, never an end of the report."""
    found: list[Finding] = []
    for check in CHECKS if checks is None else checks:
        try:
            found += check(settings)
        except Exception as error:
            found.append(Finding("fail", check.__name__.strip("_"), f"{type(error).__name__}: {error}", "report this"))
    return found


def print_findings(findings: list[Finding]) -> int:
    """Print a report; returns the exit code: 1 when something is missing that the project cannot do without."""
    width = max(len(finding.subject) for finding in findings)
    for level, subject, detail, remedy in findings:
        print(f"{level:<4}  {subject:<{width}}  {detail}")
        if remedy:
            print(f"{'':<4}  {'':<{width}}  → {remedy}")
    worst = [sum(finding.level == level for finding in findings) for level in ("fail", "warn")]
    print(f"\n{worst[0]} to repair, {worst[1]} to know about" if any(worst) else "\neverything is there")
    return 1 if worst[0] else 0


def _version(name: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, remedy: str, subject: str | None = None) -> Finding:
    """Say whether a distribution that the project needs is installed."""
    version = _version(name)
    if version is None:
        return Finding("fail", subject or name, "not installed", remedy)
    return Finding("ok", subject or name, version)


_SETUP = "run `make setup` (or `pip install -e . -c constraints.txt`)"


def _python(settings: Settings) -> list[Finding]:
    """Check the interpreter and the project."""
    version = platform.python_version()
    found = [
        Finding("ok", "python", f"{version} at {sys.executable}")
        if sys.version_info >= (3, 11)
        else Finding("fail", "python", version, "fovea needs Python 3.11 or newer")
    ]
    if not (settings.root / "dvc.yaml").exists():
        found.append(
            Finding(
                "warn", "project", f"no dvc.yaml in {settings.root}", "start fovea inside a project, or set FOVEA_ROOT"
            )
        )
    else:
        found.append(Finding("ok", "project", str(settings.root)))
    return found


def _ffmpeg(settings: Settings) -> list[Finding]:
    """Check the program that writes clips: where it is, its version, and its encoders."""
    source = "FOVEA_FFMPEG" if settings.ffmpeg else "wheel imageio-ffmpeg"
    path = settings.ffmpeg
    if path is None:
        if find_spec("imageio_ffmpeg") is None:
            return [Finding("fail", "ffmpeg", "the wheel imageio-ffmpeg is not installed", _SETUP)]
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
    remedy = "point FOVEA_FFMPEG to an ffmpeg, or unset it" if settings.ffmpeg else _SETUP
    try:
        first = _output([path, "-version"]).splitlines()[0]
        encoders = _output([path, "-hide_banner", "-encoders"])
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return [Finding("fail", "ffmpeg", f"{path} does not run: {error}", remedy)]
    match = re.match(r"ffmpeg version (\S+)", first)
    if match is None:
        return [Finding("fail", "ffmpeg", f"{path} is no ffmpeg: it says {first[:60]!r}", remedy)]
    found = [Finding("ok", "ffmpeg", f"{match[1]} at {path} ({source})")]
    have = {line.split()[1] for line in encoders.splitlines() if len(line.split()) > 1}
    missing = [name for name in _ENCODERS if name not in have]
    extra = [name for name in ("libx265", "libvpx-vp9", "libsvtav1", "libopus") if name in have]
    if missing:
        found.append(
            Finding(
                "fail",
                "encoders",
                f"{', '.join(missing)} missing in {path}",
                "unset FOVEA_FFMPEG to use the wheel's ffmpeg",
            )
        )
    else:
        found.append(Finding("ok", "encoders", f"{', '.join(_ENCODERS)} (also {', '.join(extra) or 'none'})"))
    if settings.ffmpeg:
        found.append(
            Finding(
                "warn",
                "ffmpeg",
                "shards made with another ffmpeg than the wheel's have other bytes",
                "unset FOVEA_FFMPEG where shards have to be the same as elsewhere",
            )
        )
    return found


def _output(command: list[str], timeout_s: float = 60) -> str:
    """Return what a program prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True).stdout


def _pyav(_: Settings) -> list[Finding]:
    """Check PyAV, which probes sources and is the rung of the decoder ladder that is always there."""
    finding = _package("av", _SETUP, "PyAV")
    if finding.level == "fail":
        return [finding]
    import av

    libraries = ", ".join(
        f"{name} {'.'.join(map(str, number))}" for name, number in sorted(av.library_versions.items())
    )
    wanted = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "gif")
    have = av.codecs_available
    missing = [
        name
        for name in wanted
        if name not in have and f"lib{name}" not in have and f"lib{name.replace('av1', 'dav1d')}" not in have
    ]
    decoders = ", ".join(name for name in wanted if name not in missing)
    detail = f"{finding.detail} ({libraries.split(', libavdevice')[0]}); decodes {decoders}"
    if missing:
        return [Finding("warn", "PyAV", detail, f"sources in {', '.join(missing)} will be quarantined")]
    return [Finding("ok", "PyAV", detail)]


def _decoders(_: Settings) -> list[Finding]:
    """Check the other rungs of the decoder ladder."""
    found = []
    for name, subject, use in (
        ("opencv-python-headless", "OpenCV", "decoding falls back to PyAV"),
        ("simplejpeg", "simplejpeg", "JPEG frames are decoded more slowly"),
    ):
        version = _version(name) or (_version("opencv-python") if subject == "OpenCV" else None)
        found.append(
            Finding("ok", subject, version)
            if version
            else Finding("warn", subject, "not installed", f"{use}; {_SETUP}")
        )
    found.append(_torchcodec())
    return found


def _torchcodec() -> Finding:
    """Say whether torchcodec can be imported: it looks for FFmpeg's shared libraries when it is."""
    version = _version("torchcodec")
    if version is None:
        return Finding("ok", "torchcodec", "not installed (optional: pip install fovea[torchcodec])")
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import torchcodec.decoders"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "warn", "torchcodec", f"{version}, import takes more than 120 s", "PyAV or OpenCV decode instead"
        )
    if done.returncode == 0:
        return Finding("ok", "torchcodec", version)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    missing = sorted({match[1] for line in lines if (match := re.search(r"(lib[\w.-]+)\.so[.\d]*: cannot open", line))})
    reason = (
        f"no shared library {', '.join(missing)} of a version it knows"
        if missing
        else (lines[-1] if lines else "import fails")[:200]
    )
    return Finding(
        "warn",
        "torchcodec",
        f"{version}, not usable: {reason}",
        "install FFmpeg's shared libraries (Debian: apt-get install ffmpeg); PyAV or OpenCV decode until then",
    )


def _torch(_: Settings) -> list[Finding]:
    """Check the training library, and that the package that breaks others is not there."""
    found = [_package("torch", _SETUP)]
    vision = _version("torchvision")
    if vision is not None:
        found.append(
            Finding(
                "warn",
                "torchvision",
                f"{vision} is installed; a build that does not fit torch breaks every library that tries to import it",
                "fovea does not need it: pip uninstall torchvision, unless you do",
            )
        )
    return found


def _ray(settings: Settings) -> list[Finding]:
    """Check Ray and whether the cluster of RAY_ADDRESS answers."""
    finding = _package("ray", _SETUP)
    found = [finding]
    address = settings.ray_address
    if address in (None, "local"):
        found.append(Finding("ok", "ray cluster", "RAY_ADDRESS is not set: a local Ray starts when it is needed"))
    elif address == "auto":
        session = Path("/tmp/ray/ray_current_cluster")
        if session.exists():
            found.append(Finding("ok", "ray cluster", f"auto: {session.read_text().strip()}"))
        else:
            found.append(
                Finding(
                    "fail", "ray cluster", "RAY_ADDRESS=auto, but no cluster runs here", "ray start --head, or unset it"
                )
            )
    else:
        found.append(_reachable(str(address)))
    return found


def _reachable(address: str) -> Finding:
    """Say whether something listens at an address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host or "127.0.0.1", int(port)), timeout=3):
            return Finding("ok", "ray cluster", f"{address} answers")
    except (OSError, ValueError) as error:
        return Finding(
            "fail", "ray cluster", f"{address} does not answer: {error}", "start that cluster, or unset RAY_ADDRESS"
        )


def _prefect(settings: Settings) -> list[Finding]:
    """Check Prefect, the pin of FastAPI under it, and the server if one is named."""
    found = [_package("prefect", _SETUP)]
    fastapi = _version("fastapi")
    if fastapi is None:
        found.append(Finding("fail", "fastapi", "not installed", _SETUP))
    else:
        numbers = tuple(int(number) for number in re.findall(r"\d+", fastapi)[:2])
        if (0, 139) <= numbers < (0, 151):
            found.append(Finding("ok", "fastapi", f"{fastapi} (Prefect 3.8 works with 0.139 to 0.150)"))
        else:
            broken = "every flow fails" if numbers >= (0, 155) else "`prefect deploy` fails"
            found.append(
                Finding(
                    "fail", "fastapi", f"{fastapi}: {broken} with Prefect 3.8", "pip install 'fastapi>=0.139,<0.151'"
                )
            )
    url = settings.prefect_api_url
    if url is None:
        found.append(Finding("ok", "prefect server", "PREFECT_API_URL is not set: a flow starts a server for itself"))
    else:
        from urllib.error import URLError
        from urllib.request import urlopen

        try:
            with urlopen(f"{url.rstrip('/')}/health", timeout=5) as answer:
                found.append(Finding("ok", "prefect server", f"{url}: {json.loads(answer.read())}"))
        except (URLError, OSError, ValueError) as error:
            found.append(
                Finding("fail", "prefect server", f"{url}: {error}", "prefect server start, or unset PREFECT_API_URL")
            )
    return found


def _stores(settings: Settings) -> list[Finding]:
    """Check versions and places of DVC, MLflow and webdataset."""
    found = [_package(name, _SETUP) for name in ("mlflow", "dvc", "dvc-s3", "webdataset", "ffmpeg-python")]
    found = [
        Finding("warn", f.subject, f.detail, "only needed for S3 remotes")
        if f.subject == "dvc-s3" and f.level == "fail"
        else f
        for f in found
    ]
    found.append(Finding("ok", "tracking store", re.sub(r"//[^/@]+@", "//…@", settings.tracking_uri)))
    if not (settings.root / ".dvc").is_dir():
        found.append(Finding("warn", "dvc repository", f"no .dvc in {settings.root}", "git init && dvc init"))
    return found


def _gpu(_: Settings) -> list[Finding]:
    """Ask the driver which GPUs there are (torch is not imported for that)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [Finding("ok", "gpu", "none (no nvidia-smi): training runs on the CPU")]
    try:
        text = _output([program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], 30)
    except (OSError, subprocess.SubprocessError) as error:
        return [Finding("warn", "gpu", f"nvidia-smi fails: {error}", "check the driver; training would run on the CPU")]
    found = [Finding("ok", "gpu", line.strip()) for line in text.splitlines() if line.strip()]
    torch = _version("torch") or ""
    if found and "+cpu" in torch:
        found.append(Finding("warn", "gpu", f"torch {torch} cannot use it", "install the CUDA build of torch"))
    return found


def _machine(settings: Settings) -> list[Finding]:
    """Check cores, memory and the disk of the project."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory_gb()
    found = [Finding("ok", "cores", str(cores))]
    if memory is not None:
        found.append(
            Finding("ok", "memory", f"{memory:.0f} GB")
            if memory >= _LOW_MEMORY_GB
            else Finding(
                "warn", "memory", f"{memory:.1f} GB", f"Ray and torch want {_LOW_MEMORY_GB} GB; close other programs"
            )
        )
    place = settings.root
    usage = shutil.disk_usage(place)
    free = usage.free / 1e9
    found.append(
        Finding("ok", "disk", f"{free:.0f} GB free at {place}")
        if free >= _LOW_DISK_GB
        else Finding(
            "warn", "disk", f"{free:.1f} GB free at {place}", "shards, checkpoints and the DVC cache lie there"
        )
    )
    shm = Path("/dev/shm")
    if shm.exists() and shutil.disk_usage(shm).total < 1e9:
        size = shutil.disk_usage(shm).total / 1e6
        found.append(
            Finding(
                "warn", "shared memory", f"{size:.0f} MB at /dev/shm", "Ray spills to disk; docker run --shm-size=2g"
            )
        )
    return found


def _memory_gb() -> float | None:
    """Return the memory that this process may use: the machine's, or its control group's if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total / 1e9


CHECKS: tuple[Check, ...] = (
    _python,
    _ffmpeg,
    _pyav,
    _decoders,
    _torch,
    _ray,
    _prefect,
    _stores,
    _gpu,
    _machine,
)
"""All checks in the order of the report."""
