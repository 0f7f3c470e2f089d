"""Checksums of files: both halves name files by them, and neither may import the other."""

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
