"""Reads the XML files of ImageNet VID and DET (the layout of PASCAL VOC)."""

from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from tasks.ops.readers_base import ReaderError

_FIELDS = {
    "annotation/size/width": "width",
    "annotation/size/height": "height",
    "annotation/object/trackid": "trackid",
    "annotation/object/name": "name",
    "annotation/object/bndbox/xmin": "xmin",
    "annotation/object/bndbox/ymin": "ymin",
    "annotation/object/bndbox/xmax": "xmax",
    "annotation/object/bndbox/ymax": "ymax",
}


class XmlObject(NamedTuple):
    """One object of a picture."""

    track: int | None
    name: str
    """As the file has it: a WordNet id, in ImageNet."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1: edges, pixels."""


class XmlPicture(NamedTuple):
    """One annotated picture."""

    size: tuple[int, int] | None
    """Width and height, pixels; None where the file has none, or zeros."""
    objects: tuple[XmlObject, ...]


def read_xml(path: Path) -> XmlPicture:
    """Read the annotation of one picture.

    The file names first and last pixel; the last one gets 1 added, see `data_specs.boxes`.

    Raises:
        ReaderError: it is no such file. A document type is refused: nothing in these files needs one, and its entities
            can be made to fill the memory.
    """
    try:
        return _parse(path.read_bytes(), path)
    except expat.ExpatError as error:
        raise ReaderError(f"{path}:{error.lineno}: not valid XML: {expat.errors.messages[error.code]}") from error


def _parse(data: bytes, path: Path) -> XmlPicture:
    """Read the text of a file."""
    parser: Any = expat.ParserCreate()
    parser.buffer_text = True
    steps: list[str] = []
    size: dict[str, str] = {}
    objects: list[dict[str, str]] = []
    text: list[str] = []

    def refuse(*_: object) -> None:
        line = parser.CurrentLineNumber
        raise ReaderError(f"{path}:{line}: has a document type (DOCTYPE), which is not read; remove it")

    def start(name: str, _: object) -> None:
        steps.append(name)
        text.clear()
        if steps == ["annotation", "object"]:
            objects.append({})

    def end(_: str) -> None:
        field = _FIELDS.get("/".join(steps))
        if field is not None:
            place = size if steps[1] == "size" else objects[-1]
            if field in place:
                raise ReaderError(f"{path}:{parser.CurrentLineNumber}: {'/'.join(steps)} is given twice")
            place[field] = "".join(text).strip()
        if len(steps) == 1 and steps != ["annotation"]:
            raise ReaderError(f"{path}: the outermost element is {steps[0]!r}, must be 'annotation'")
        steps.pop()
        text.clear()

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.Parse(data, True)
    found = tuple(_object(fields, number, path) for number, fields in enumerate(objects, start=1))
    width, height = (int(_number(size.get(side, "0"), f"{path}: size/{side}")) for side in ("width", "height"))
    return XmlPicture((width, height) if width > 0 and height > 0 else None, found)


def _object(fields: dict[str, str], number: int, path: Path) -> XmlObject:
    """Return an object of its fields."""
    where = f"{path}: object {number}"
    lacking = [name for name in ("name", "xmin", "ymin", "xmax", "ymax") if not fields.get(name)]
    if lacking:
        raise ReaderError(f"{where}: has no {', '.join(lacking)}")
    x0, y0, x1, y1 = (_number(fields[name], f"{where}: {name}") for name in ("xmin", "ymin", "xmax", "ymax"))
    track = fields.get("trackid")
    if track is not None and not track.isdecimal():
        raise ReaderError(f"{where}: trackid {track!r} is not a number from 0 on")
    return XmlObject(None if track is None else int(track), fields["name"], (x0, y0, x1 + 1, y1 + 1))


def _number(text: str, where: str) -> float:
    """Return a finite number.

    Raises:
        ReaderError: it is none.
    """
    try:
        value = float(text)
        if abs(value) < 1e6:
            return value
    except ValueError:
        pass
    raise ReaderError(f"{where}: {text!r} is not a number of pixels")
