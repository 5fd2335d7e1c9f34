"""Checks of the machine before anything trains. Imports nothing heavy.

DeepSpeed compiles C++ operations at first use. This project needs none of them: the optimiser is torch's own, and
DeepSpeed's only other operation on CPUs, an all-reduce through shared memory for inference, is switched off before it
is built (`stages.training.engine`). So no compiler, no ninja and no minute of waiting: what is left to check is that
the packages are there and of versions that the loop knows.
"""

from __future__ import annotations

from importlib import metadata

from stages.errors import UserError

REQUIRED = {"torch": (2, 6), "transformers": (5, 17), "deepspeed": (0, 19)}
"""Packages that training imports, and the oldest version known to work."""


def require_training_tools() -> None:
    """Raise UserError when a package that training imports is missing or too old."""
    for package, oldest in REQUIRED.items():
        wanted = ".".join(map(str, oldest))
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise UserError(
                f"training needs {package} >= {wanted}, which is not installed",
                fix=f"pip install '{package}>={wanted}'",
            ) from None
        if _numbers(found) < oldest:
            raise UserError(
                f"training needs {package} >= {wanted}, found {found}",
                fix=f"pip install --upgrade '{package}>={wanted}'",
            )


def _numbers(version: str) -> tuple[int, ...]:
    digits = ("".join(c for c in part if c.isdigit()) for part in version.split("+")[0].split(".")[:2])
    return tuple(int(part or 0) for part in digits)
