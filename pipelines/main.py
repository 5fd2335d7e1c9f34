"""The `regraft` command: turns what goes wrong into one clear screen and an exit code.

0 done, 1 a stage failed, 2 the input or the machine is at fault, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys

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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: the disk is full: {error}\nfix: free some space; what is finished is kept", file=sys.stderr)
            sys.exit(2)
        text = f"error: this is a mistake in regraft: {type(error).__name__}: {error}"
        print(f"{text}\nfix: set REGRAFT_DEBUG=1 to see where, and report it", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
