"""Weights from files: reading state dicts and putting them into a network, with a report of what matched.

A network that silently keeps its random initialisation where names differ looks like one that trains
badly. So loading is strict by default, says exactly what did not fit, and changes nothing unless all of
it succeeds.
"""

import difflib
import fnmatch
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from data_specs.files import sha256_of
from training.core.config import WeightsFile

__all__ = ["WeightError", "WeightReport", "load_published", "load_state", "load_weights"]

Rename = Mapping[str, str] | Callable[[str], str | None]
"""Old → new: a mapping of whole keys or of dotted prefixes (the longest wins; an empty new prefix removes it), or
a function that returns the new key, or None to drop the entry."""

Convert = Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]]
"""(state dict of the file, network) → state dict in the network's names, for layouts whose values differ too. What it
does not know it keeps under its old name; it raises ValueError where the file contradicts itself."""

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Keys under which training scripts put the state dict."""

PREFIXES = ("module.", "_orig_mod.")
"""Put in front of every key by data parallelism and by `torch.compile`."""

SHOWN = 8
"""Lines of a report per kind of problem."""


class WeightError(ValueError):
    """A weight file that cannot be read, or that does not fit the network."""


@dataclass(frozen=True)
class WeightReport:
    """What fitted and what did not. Names are those of the network."""

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """In the network, not in the file."""
    unexpected: tuple[str, ...]
    """In the file, not in the network."""
    mismatched: tuple[tuple[str, str, str], ...]
    """Name, shape (or type) in the network, the same in the file."""
    non_finite: tuple[str, ...]
    """Tensors of the file with NaN or infinity."""
    ignored: tuple[str, ...]
    """Left out on request."""
    defaulted: tuple[str, ...]
    """`num_batches_tracked` counters that older files lack; kept as they are."""
    guesses: Mapping[str, str]
    """Missing name → the most similar unexpected name with the same shape."""
    matched_parameters: int
    """Elements of all matched tensors."""

    @property
    def complete(self) -> bool:
        """Whether every tensor of network and file found its partner, leaving aside what was ignored."""
        return not (self.missing or self.unexpected or self.mismatched or self.non_finite)

    def __str__(self) -> str:
        lines = [
            f"weights from {self.source}: "
            + ("all tensors fit" if self.complete else "the file does not fit the network"),
            f"  {'matched':<12}{len(self.matched):>6}  ({self.matched_parameters:,} elements)",
        ]
        for kind, names in (
            ("missing", tuple(f"{name}{self._hint(name)}" for name in self.missing)),
            ("unexpected", self.unexpected),
            ("mismatched", tuple(f"{name}: network {ours}, file {theirs}" for name, ours, theirs in self.mismatched)),
            ("non-finite", self.non_finite),
            ("ignored", self.ignored),
            ("defaulted", self.defaulted),
        ):
            if not names:
                continue
            lines.append(f"  {kind:<12}{len(names):>6}")
            if kind not in ("ignored", "defaulted"):
                lines += [f"      {name}" for name in names[:SHOWN]]
                if len(names) > SHOWN:
                    lines.append(f"      … and {len(names) - SHOWN} more")
        return "\n".join(lines)

    def _hint(self, name: str) -> str:
        return f" (the file has {self.guesses[name]!r} of the same shape)" if name in self.guesses else ""


# --- reading ----------------------------------------------------------------------------------


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU.

    Reads `.safetensors`, `.npz`, and files of `torch.save` (`.pt`, `.pth`, `.th`, …), the latter with
    `weights_only=True`: no code from the file runs. Unwraps `{"state_dict": …}` and the like, and removes a
    `module.` or `_orig_mod.` that stands before every key.

    Raises:
        WeightError: no such file, a damaged one, one that needs code to load, or one without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightError(f"{path}: no such weight file")
    content: Any
    if path.suffix == ".safetensors":
        try:
            content = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightError(f"{path} cannot be read as safetensors: {error}") from None
    elif path.suffix == ".npz":
        content = _load_npz(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            first = str(error).split("\n")[0]
            raise WeightError(
                f"{path} holds more than tensors, and loading it would run code from the file ({first}). "
                f"Where you trust it, save only its state dict: torch.save(model.state_dict(), …)"
            ) from None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
            raise WeightError(f"{path} cannot be read as a torch file: {error}") from None
    return _strip_prefixes(_unwrap(content, path))


def _load_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise WeightError(f"{path} cannot be read as arrays of numpy.savez: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise WeightError(f"{path}: {name} has the type {array.dtype}, no numbers; leave it out when exporting")
    return {name: torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)) for name, array in arrays.items()}


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WeightError(f"{path} holds a {type(content).__name__}, not a state dict")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(key): value for key, value in content.items()}
    for name in CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and inner:
            return _unwrap(inner, path)
    others = [f"{key} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    raise WeightError(
        f"{path} holds no state dict: neither all values are tensors, nor is there one under "
        f"{', '.join(CONTAINERS)}; it has {', '.join(others[:SHOWN]) or 'nothing'}"
    )


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if state and all(key.startswith(prefix) and len(key) > len(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                stripped = True
    return state


# --- fitting ----------------------------------------------------------------------------------


def load_weights(
    module: nn.Module,
    path_or_state: Path | str | Mapping[str, Tensor],
    *,
    strict: bool = True,
    rename: Rename | None = None,
    convert: Convert | None = None,
    ignore: Sequence[str] = (),
) -> WeightReport:
    """Copy weights into a network; all that fit, or none.

    Args:
        module: the network; keeps its dtypes and devices.
        path_or_state: file (see `load_state`) or state dict.
        strict: raise unless everything fits. Otherwise what fits is loaded and the report tells the rest;
            tensors of another shape are then left as they were.
        rename: applied to the file's names first.
        convert: applied to names and values after that.
        ignore: patterns (`fc.*`) of names, after renaming, that may be missing, extra or of another shape;
            they are not loaded.

    Raises:
        WeightError: an unreadable file; two names that become one; strict and something does not fit (the
            message is the report); or nothing fits at all. The network is then unchanged.
    """
    if isinstance(path_or_state, Mapping):
        source, state = "a state dict", dict(path_or_state)
    else:
        source, state = str(path_or_state), load_state(Path(path_or_state))
    dropped: list[str] = []
    if rename is not None:
        state, dropped = _renamed(state, rename, source)
    if convert is not None:
        try:
            state = dict(convert(state, module))
        except ValueError as error:
            raise WeightError(f"{source}: {error}") from None
    report = _compare(module.state_dict(), state, source, ignore, dropped)
    if not report.matched:
        raise WeightError(f"no tensor of the file fits the network\n{report}")
    if report.non_finite or (strict and not report.complete):
        raise WeightError(str(report))
    # Everything was checked above, so the copies below cannot fail half way.
    target = module.state_dict()
    with torch.no_grad():
        for name in report.matched:
            target[name].copy_(state[name])
    return report


def load_published(
    module: nn.Module,
    file: WeightsFile,
    root: Path,
    *,
    rename: Rename | None = None,
    convert: Convert | None = None,
    ignore: Sequence[str] = (),
) -> WeightReport:
    """Copy published weights into a network, strictly, after comparing the file with its checksum.

    Args:
        module: the network.
        file: path and checksum, as a params file names them.
        root: folder that a relative path starts from.
        rename: from the names of the file's layout, see `load_weights`.
        convert: from the names and values of the file's layout, see `load_weights`.
        ignore: patterns of names that may be missing or extra, e.g. of the head.

    Raises:
        WeightError: no such file, another checksum (the message has the actual one), or see `load_weights`.
    """
    path = root / file.path
    if not path.is_file():
        raise WeightError(f"{path}: no such weight file")
    actual = sha256_of(path)
    if actual != file.sha256:
        raise WeightError(f"{path} has the sha256 {actual}, the params file says {file.sha256}")
    return load_weights(module, path, rename=rename, convert=convert, ignore=ignore)


def _renamed(state: Mapping[str, Tensor], rename: Rename, source: str) -> tuple[dict[str, Tensor], list[str]]:
    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    dropped: list[str] = []
    for key, value in state.items():
        new = _rename_by_mapping(key, rename) if isinstance(rename, Mapping) else rename(key)
        if new is None:
            dropped.append(key)
            continue
        if new in result:
            raise WeightError(f"{source}: {origin[new]!r} and {key!r} would both become {new!r}")
        result[new], origin[new] = value, key
    return result, dropped


def _rename_by_mapping(key: str, rename: Mapping[str, str]) -> str:
    if key in rename:
        return rename[key]
    prefixes = [old for old in rename if key.startswith(old if old.endswith(".") else old + ".")]
    if not prefixes:
        return key
    old = max(prefixes, key=len)
    rest = key[len(old) :].removeprefix(".")
    new = rename[old].removesuffix(".")
    return f"{new}.{rest}" if new else rest


def _compare(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    source: str,
    ignore: Sequence[str],
    dropped: list[str],
) -> WeightReport:
    def is_ignored(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)

    matched: list[str] = []
    missing: list[str] = []
    mismatched: list[tuple[str, str, str]] = []
    non_finite: list[str] = []
    defaulted: list[str] = []
    ignored = list(dropped)
    for name, tensor in ours.items():
        if is_ignored(name):
            ignored.append(name)
        elif name not in theirs:
            (defaulted if name.endswith("num_batches_tracked") else missing).append(name)
        elif tensor.shape != theirs[name].shape:
            mismatched.append((name, str(tuple(tensor.shape)), str(tuple(theirs[name].shape))))
        elif tensor.is_floating_point() != theirs[name].is_floating_point():
            mismatched.append((name, str(tensor.dtype), str(theirs[name].dtype)))
        elif not bool(torch.isfinite(theirs[name]).all()):
            non_finite.append(name)
        else:
            matched.append(name)
    for name in theirs:
        if name not in ours and is_ignored(name):
            ignored.append(name)
    unexpected = [name for name in theirs if name not in ours and not is_ignored(name)]
    return WeightReport(
        source=source,
        matched=tuple(matched),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        non_finite=tuple(non_finite),
        ignored=tuple(ignored),
        defaulted=tuple(defaulted),
        guesses=_guesses({name: ours[name] for name in missing}, {name: theirs[name] for name in unexpected}),
        matched_parameters=sum(ours[name].numel() for name in matched),
    )


def _guesses(missing: Mapping[str, Tensor], unexpected: Mapping[str, Tensor]) -> dict[str, str]:
    guesses: dict[str, str] = {}
    for name in list(missing)[:SHOWN]:
        alike = [other for other, tensor in unexpected.items() if tensor.shape == missing[name].shape]
        close = difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
        if close:
            guesses[name] = close[0]
    return guesses
