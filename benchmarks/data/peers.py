"""The environment of datatrove and datasketch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.environments import ensure

DATATROVE = "0.10.1"
BESIDE = ("tokenizers==0.23.3", "orjson", "datasketch==2.0.0")
"""What datatrove's reader and tokenizer import, and the MinHash library."""


def python(cache: Path) -> Path:
    """The interpreter that has them; it is made when it is not there yet."""
    binaries = ensure(cache, "datatrove", DATATROVE)
    ready = binaries.parent / "beside"
    if not ready.exists():
        pip = [str(binaries / "pip"), "install", "--quiet", "--disable-pip-version-check", *BESIDE]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(BESIDE)} cannot be installed here:\n{done.stderr[-3000:]}")
        ready.touch()
    return binaries / "python"
