"""What a served model is given: paths, bytes or base64 of videos, in whatever MLflow wraps them."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

__all__ = ["InputError", "as_source", "items_of", "name_of"]


class InputError(ValueError):
    """An input is neither a readable file nor bytes of one."""


def name_of(item: object) -> str:
    """Return how an input is called in answers."""
    if isinstance(item, bytes | bytearray | memoryview):
        return f"bytes:{len(item)}"
    text = str(item)
    return text if len(text) <= 1024 and not text.startswith("data:") else f"base64:{len(text)}"


def as_source(item: object) -> Path | bytes:
    """Turn an input into a path or bytes.

    Raises:
        InputError: no such file, and not base64 either.
    """
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, Path):
        text = str(item)
    elif isinstance(item, str):
        text = item
    else:
        raise InputError(f"a video is a path, bytes or base64 text, got {type(item).__name__}")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif len(text) < 4096 and Path(text).is_file():
        return Path(text)
    if len(text) >= 64:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            pass
    raise InputError(f"{text[:200]!r} is not a file, nor base64 of one")


def items_of(model_input: object) -> Iterator[object]:
    """Yield the videos of whatever MLflow hands over: DataFrame, array, mapping, list or one video."""
    import pandas as pd

    if isinstance(model_input, pd.DataFrame):
        column = "video" if "video" in model_input.columns else model_input.columns[0]
        # MLflow turns {"video": [a, b]} into one row that holds the list.
        for item in model_input[column].tolist():
            yield from items_of(item) if isinstance(item, list | tuple | np.ndarray) else (item,)
    elif isinstance(model_input, Mapping):
        if "video" not in model_input:
            raise InputError(f"the input must have the column 'video', got {', '.join(map(str, model_input))}")
        yield from items_of(model_input["video"])
    elif isinstance(model_input, pd.Series | np.ndarray):
        yield from model_input.reshape(-1).tolist() if isinstance(model_input, np.ndarray) else model_input.tolist()
    elif isinstance(model_input, list | tuple):
        for item in model_input:
            yield item["video"] if isinstance(item, Mapping) and "video" in item else item
    else:
        yield model_input
