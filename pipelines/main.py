"""The `regraft` command: turns what goes wrong into one clear screen and an exit code.

0 done, 1 a stage failed (or what was looked at is damaged, or regraft is mistaken), 2 the input or the machine is at
fault, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from stages.errors import RegraftError


def main() -> None:
    """Run the command line."""
    # Looking for plugins, pydantic reads the metadata of every installed package, at every start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    from pipelines.cli.app import app

    try:
        app()
    except RegraftError as error:
        from pipelines.spec.problems import printable

        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("REGRAFT_DEBUG"):
            raise
        _tell(error)


def _tell(error: Exception) -> NoReturn:
    """Tell of an error that nobody foresaw."""
    from pipelines.causes import is_disk_full

    code, text = 1, f"this is a mistake in regraft: {type(error).__name__}: {error}"
    fix = "set REGRAFT_DEBUG=1 to see where, and report it"
    if is_disk_full(error):
        code, text, fix = 2, f"the disk is full: {error}", "free some space; what is finished is kept"
    elif isinstance(error, OSError) and error.filename:
        code, text = 2, f"{error.filename}: {error.strerror}"
        fix = "check that it is there, and that you may read and write it"
    print(f"error: {text}\nfix: {fix}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
