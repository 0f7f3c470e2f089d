"""Files of a run folder, read with errors that name them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RecordError(ValueError):
    """Run folders that are incomplete, or that cannot be compared."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        RecordError: no such file, or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path} is missing; run the stage again") from None
    except ValueError as error:
        raise RecordError(f"{path} is no JSON ({error}); run the stage again") from None


def get_field(values: Mapping[str, Any], name: str, where: Path) -> Any:
    """Return a field of what was read from `where`.

    Raises:
        RecordError: it is missing.
    """
    if not isinstance(values, Mapping) or name not in values:
        raise RecordError(f"{where} lacks the field {name!r}; run the stage again with this version")
    return values[name]
