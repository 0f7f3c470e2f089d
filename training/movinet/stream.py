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
from training.core.transforms import ClipTransform
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
        CheckpointError: the folder is no model, or a damaged one.
        ConfigError: the model is no causal MoViNet, or a window without frames.
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
        data = self.model.data_config()
        # One crop, the centre: the system's own transform may give several, one after another along T.
        self._transform = ClipTransform(data.transform.model_copy(update={"eval_crops": 1}))
        self._side = data.transform.eval_side
        # A member of a half-rate ensemble was shown every second frame of its clips.
        self._stride = data.stride * (2 if "member" in self.model.config else 1)
        self._state = self._initial(0)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.model.classes

    @property
    def stride(self) -> int:
        """Every how many frames of its videos the net was trained on."""
        return self._stride

    @property
    def state_bytes(self) -> int:
        """Memory that one video's state takes, bytes; the same after any number of frames."""
        return state_bytes(self._initial(1, torch.device("meta")))

    def join(self, *names: str) -> None:
        """Let videos begin.

        Raises:
            ValueError: a name that is there already, or is given twice; then none begins.
        """
        for place, name in enumerate(names):
            if name in self.names or name in names[:place]:
                raise ValueError(f"the video {name!r} is in the batch already; it leaves by `leave`")
        self.names = [*self.names, *names]
        self._state = join(self._state, self._initial(len(names)))

    def leave(self, *names: str) -> None:
        """Forget videos.

        Raises:
            KeyError: no such video; then all stay.
        """
        gone = set(self._rows(names))
        stay = [row for row in range(len(self.names)) if row not in gone]
        self._state = select(self._state, torch.tensor(stay, dtype=torch.int64))
        self.names = [self.names[row] for row in stay]

    @torch.inference_mode()
    def push(self, frames: Mapping[str, Frames]) -> dict[str, Scores]:
        """See the next frames of some of the videos, in one forward; the others wait.

        Args:
            frames: by name of the video, RGB as the loader decodes it, uint8 (T,H,W,3), the same T for all; sizes may
                differ.

        Returns:
            By name, the class probabilities (T,K) after each frame: the answer so far.

        Raises:
            KeyError: a video that has not joined.
            ValueError: frames of another shape or type, different numbers of frames, or none. After an error the
                states are as before.
        """
        rows = self._rows(list(frames))
        if not rows:
            return {}
        for name, video in frames.items():
            if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape[1:]:
                raise ValueError(
                    f"the frames of {name!r} must be uint8 (T,H,W,3), got {video.dtype} {tuple(video.shape)}"
                )
        counts = sorted({len(value) for value in frames.values()})
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(f"all videos of one call need the same number of frames, at least one, got {counts}")
        batch = self._transform(_raw(list(frames.values())).to(self.device), train=False)
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
        state = {name: tensor.contiguous() for name, tensor in self._state.items()}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        try:
            safetensors.torch.save_file(state, temporary, metadata=facts)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def restore(self, path: Path) -> None:
        """Go on with the videos of a file instead of those that are here.

        Raises:
            FileNotFoundError: no such file.
            ConfigError: no file of states, or one of another model or another window. The videos here then stay.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device=str(self.device)) as file:
                facts = file.metadata() or {}
                state: State = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no dict
        except safetensors.SafetensorError as error:
            raise ConfigError(f"{path} holds no states of a stream: {error}") from None
        if not {"names", "model", "window"} <= set(facts):
            raise ConfigError(f"{path} holds no states of a stream; `save` writes such files")
        if facts["model"] != self.digest:
            raise ConfigError(
                f"{path}: the states are of the model {facts['model'][:12]}, this one is {self.digest[:12]}; "
                "only the model that wrote them can go on"
            )
        if facts["window"] != json.dumps(self.window):
            raise ConfigError(
                f"{path}: the states are of the window {facts['window']}, this stream has {json.dumps(self.window)}; "
                "open it with the same window"
            )
        names = json.loads(facts["names"])
        shapes = {name: tensor.shape for name, tensor in self._initial(len(names), torch.device("meta")).items()}
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise ConfigError(f"{path}: the states do not have the shapes of this model's; start the videos again")
        self.names, self._state = names, {name: state[name] for name in shapes}

    def _initial(self, videos: int, device: torch.device | None = None) -> State:
        size = (self._side, self._side)
        return self.system.net.initial_state(videos, size, window=self.window, device=device or self.device)

    def _rows(self, names: Sequence[str]) -> list[int]:
        row_of = {name: row for row, name in enumerate(self.names)}
        for name in names:
            if name not in row_of:
                raise KeyError(f"no video {name!r} in the batch; {', '.join(self.names) or 'none'} joined")
        return [row_of[name] for name in names]


def _raw(videos: Sequence[Frames]) -> RawBatch:
    """Put videos into the top left corners of a common canvas."""
    height, width = (max(video.shape[axis] for video in videos) for axis in (1, 2))
    canvas_BTHWC = np.zeros((len(videos), len(videos[0]), height, width, 3), np.uint8)
    for clip, video in zip(canvas_BTHWC, videos, strict=True):
        clip[:, : video.shape[1], : video.shape[2]] = video
    count = len(videos)
    return RawBatch(
        frames_BTHWC=torch.from_numpy(canvas_BTHWC),
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
