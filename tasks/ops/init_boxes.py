"""Recognises sources with boxes for `fovea data init`: a root like ImageNet VID's, a json file like COCO-video's."""

import json
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from data_specs.box_sources import BoxSource, CocoVideoSource, ImagenetDetSource, ImagenetVidSource
from data_specs.schema import ClipPolicy
from tasks.ops.imagenet_xml import read_xml
from tasks.ops.readers_base import walk_files
from tasks.ops.readers_imagenet import CLASSES

_RATE = 25.0
"""Frames per second that is proposed for frame folders, which say none."""
_XML_FILES = 2000
"""Annotations that are looked at for the names of classes."""


def looks_like_imagenet(target: Path) -> bool:
    """Tell whether a folder is laid out like ImageNet VID."""
    return (target / "Data" / "VID").is_dir() and (target / "Annotations" / "VID").is_dir()


def imagenet_source(target: Path, shown: str) -> tuple[ImagenetVidSource, bool, list[str]]:
    """Return the source of a VID root, whether it has splits of its own, and what was seen.

    Args:
        target: The root.
        shown: It, as it stands in the specification.
    """
    subsets = sorted(path.name for path in (target / "Data" / "VID").iterdir() if path.is_dir())
    official = bool(subsets) and set(subsets) <= {"train", "val", "test"} and "train" in subsets
    told = [f"Data/VID and Annotations/VID are those of ImageNet VID, with {', '.join(subsets) or 'no folders'}"]
    if (target / "ImageSets").is_dir():
        told.append("lists in ImageSets are not used; source.videos or source.frames would name one")
    return ImagenetVidSource(root=shown), official, told


def coco_source(target: Path, root: Path, shown_root: str, shown: str) -> tuple[CocoVideoSource, list[str]] | str:
    """Return the source of a json file, and what was seen; a text that says why it is none.

    Args:
        target: The file.
        root: Folder that the frames or videos are in.
        shown_root: It, as it stands in the specification.
        shown: The file, as it stands there.
    """
    try:
        data: Any = json.loads(target.read_bytes())
    except ValueError as error:
        return f"{target}: not valid JSON: {error}"
    if not isinstance(data, dict) or not all(data.get(name) for name in ("videos", "images", "categories")):
        return f"{target}: has not the lists videos, images, annotations and categories of COCO-video"
    first_id = min((image.get("frame_id", 0) for image in data["images"]), default=0)
    file = data["images"][0].get("file_name", "")
    video = data["videos"][0]
    name = video.get("file_name") or video.get("name", "")
    if (root / file).is_file() and "/" in file:
        rate, what = _RATE, f"videos are folders of frames, such as {file.rpartition('/')[0]}, shown at {_RATE:g} fps"
    elif (root / str(name)).is_file():
        rate, what = None, f"videos are files, such as {name}"
    else:
        return f"{target}: neither frame {file!r} nor video {name!r} is in {root}; say with --root where they are"
    start: Literal[0, 1] = 1 if first_id == 1 else 0
    told = [f"{what}; frame_id counts from {start}"]
    return CocoVideoSource(root=shown_root, file=shown, fps=rate, frames_from=start), told


def class_names_of(source: BoxSource, project: Path) -> tuple[str, ...]:
    """Return the class names that a source's annotations state: the 30 of ImageNet VID, where theirs are among them."""
    if isinstance(source, CocoVideoSource):
        categories = json.loads((project / source.file).read_bytes())["categories"]
        return tuple(item["name"] for item in sorted(categories, key=lambda item: int(item["id"])))
    kind = "DET" if isinstance(source, ImagenetDetSource) else "VID"
    folder = project / source.root / "Annotations" / kind
    files = islice((name for name in walk_files(folder) if name.endswith(".xml")), _XML_FILES)
    names = {item.name for name in files for item in read_xml(folder / name).objects}
    if names & set(CLASSES) or names <= set(CLASSES.values()):
        return tuple(CLASSES.values())
    return tuple(sorted(names))


def keeping_frames(clip: ClipPolicy) -> tuple[ClipPolicy, str]:
    """Return a clip policy that keeps the frames that boxes are numbered by, and why."""
    kept = clip.model_copy(update={"representation": "mp4", "fps": None, "audio": "drop", "num_frames": None})
    return kept, "fps null and audio drop: boxes belong to the frames of the source, none is left out or added"
