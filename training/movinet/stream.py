"""A trained stream net on frames as they come: one video, or many in one batch.

The state is a value. It can be saved in the middle of a video and restored in another process; videos join and leave a
batch at any time, and no video's answers depend on the others.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from training.core.checkpoint import load_model, model_digest
from training.core.config import ConfigError
from training.core.system import RawBatch
from training.layers.streaming import State, join, select, state_bytes
from training.movinet.system import MoViNetSystem

Frames = NDArray[np.uint8]
Scores = NDArray[np.float32]


class StreamBatch:
    """Videos that are seen frame by frame, all with one net.

    Args:
        folder: model folder of a causal MoViNet.
        device: where to compute.
        window: the answer is pooled over at most this many frames; None: over all since the video's start.

    Raises:
        ConfigError: the model is no causal MoViNet.
    """

    def __init__(self, folder: Path, device: str = "cpu", window: int | None = None) -> None:
        self.model = load_model(folder, device)
        system = self.model.system
        if not isinstance(system, MoViNetSystem) or not system.net.variant.causal:
            what = f"a {type(system).__name__}" if not isinstance(system, MoViNetSystem) else "a base MoViNet"
            raise ConfigError(
                f"{folder}: {what} sees whole clips and cannot stream; name a model that `movinet_stream` trained"
            )
        if window is not None and window < 1:
            raise ConfigError(f"the window must have at least one frame, got {window}")
        self.system, self.device, self.window = system.eval(), torch.device(device), window
        self.digest = model_digest(folder)
        self.names: list[str] = []
        self._side = self.model.data_config().transform.eval_side
        self._state = self._initial(0)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.model.classes

    @property
    def stride(self) -> int:
        """Every how many frames of its videos the net was trained on."""
        return self.model.data_config().stride

    @property
    def state_bytes(self) -> int:
        """Memory that one video's state takes, bytes; the same after any number of frames."""
        return state_bytes(self._initial(1))

    def join(self, *names: str) -> None:
        """Let videos begin.

        Raises:
            ValueError: a name that is there already.
        """
        for name in names:
            if name in self.names:
                raise ValueError(f"the video {name!r} is in the batch already; it leaves by `leave`")
            self.names.append(name)
        self._state = join(self._state, self._initial(len(names)))

    def leave(self, *names: str) -> None:
        """Forget videos.

        Raises:
            KeyError: no such video.
        """
        gone = set(self._rows(names))
        stay = [row for row in range(len(self.names)) if row not in gone]
        self._state = select(self._state, torch.tensor(stay, dtype=torch.int64))
        self.names = [self.names[row] for row in stay]

    @torch.inference_mode()
    def push(self, frames: Mapping[str, Frames]) -> dict[str, Scores]:
        """See the next frames of some of the videos, in one forward; the others wait.

        Args:
            frames: by name of the video, uint8 (T,H,W,3), the same T for all; sizes may differ.

        Returns:
            By name, the class probabilities (T,K) after each frame: the answer so far.

        Raises:
            KeyError: a video that has not joined.
            ValueError: different numbers of frames, or none.
        """
        rows = self._rows(list(frames))
        if not rows:
            return {}
        counts = sorted({len(value) for value in frames.values()})
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(f"all videos of one call need the same number of frames, at least one, got {counts}")
        batch = self.system.prepare(_raw(list(frames.values())).to(self.device), train=False)
        everyone = rows == list(range(len(self.names)))
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        past = self._state if everyone else select(self._state, index)
        logits, present = self.system.net.stream(batch.video_BCTHW, past, "running")
        if everyone:
            self._state = present
        else:
            self._state = {
                name: tensor.index_copy(0, index, present[name].to(tensor.dtype))
                for name, tensor in self._state.items()
            }
        scores = logits.float().softmax(-1).cpu().numpy()
        return dict(zip(frames, scores, strict=True))

    def save(self, path: Path) -> None:
        """Write the states of all videos; the file appears when it is complete."""
        facts = {"names": json.dumps(self.names), "model": self.digest, "window": json.dumps(self.window)}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        state = {name: tensor.contiguous() for name, tensor in self._state.items()}
        safetensors.torch.save_file(state, temporary, metadata=facts)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        """Go on with the videos of a file instead of those that are here.

        Raises:
            ConfigError: the file is of another model, or of another window.
        """
        with safetensors.safe_open(path, framework="pt", device=str(self.device)) as file:
            facts = file.metadata() or {}
            state: State = {name: file.get_tensor(name) for name in self._state if name in file.keys()}  # noqa: SIM118
        ours = {"model": self.digest, "window": json.dumps(self.window)}
        for name, value in ours.items():
            if facts.get(name) != value:
                raise ConfigError(f"{path}: the states are of {name} {facts.get(name)}, this one has {name} {value}")
        self.names, self._state = json.loads(facts["names"]), state

    def _initial(self, videos: int) -> State:
        size = (self._side, self._side)
        return self.system.net.initial_state(videos, size, window=self.window, device=self.device)

    def _rows(self, names: Sequence[str]) -> list[int]:
        for name in names:
            if name not in self.names:
                raise KeyError(f"no video {name!r} in the batch; {', '.join(self.names) or 'none'} joined")
        return [self.names.index(name) for name in names]


def _raw(videos: Sequence[Frames]) -> RawBatch:
    """Put videos into the top left corners of a common canvas."""
    height, width = (max(video.shape[axis] for video in videos) for axis in (1, 2))
    if all(video.shape[1:3] == (height, width) for video in videos):
        frames = torch.from_numpy(np.stack(videos))
    else:
        frames = torch.zeros(len(videos), len(videos[0]), height, width, 3, dtype=torch.uint8)
        for canvas, video in zip(frames, videos, strict=True):
            canvas[:, : video.shape[1], : video.shape[2]] = torch.from_numpy(video)
    count = len(videos)
    return RawBatch(
        frames_BTHWC=frames,
        size_B2=torch.tensor([video.shape[1:3] for video in videos]),
        label_B=torch.zeros(count, dtype=torch.int64),
        key=tuple(map(str, range(count))),
        seed_B=torch.zeros(count, dtype=torch.int64),
        valid_B=torch.ones(count, dtype=torch.bool),
    )


class Stream:
    """One video, seen as it comes: what `fovea stream` runs.

    Args:
        folder: see `StreamBatch`.
        device: see `StreamBatch`.
        window: see `StreamBatch`.
    """

    def __init__(self, folder: Path, device: str = "cpu", window: int | None = None) -> None:
        self.batch = StreamBatch(folder, device, window)
        self.batch.join("")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.batch.classes

    @property
    def stride(self) -> int:
        """Every how many frames of its videos the net was trained on."""
        return self.batch.stride

    @property
    def state_bytes(self) -> int:
        """Memory that the state takes, bytes."""
        return self.batch.state_bytes

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a new video."""
        self.batch.leave("")
        self.batch.join("")

    def push(self, frames_THWC: Frames) -> Scores:
        """See the next frames; return the class probabilities (T,K) after each."""
        return self.batch.push({"": frames_THWC})[""]


def open_stream(folder: Path, device: str = "cpu", window: int | None = None) -> Stream:
    """Load a model folder for streaming; see `StreamBatch` for arguments and errors."""
    return Stream(folder, device, window)
