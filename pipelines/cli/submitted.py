"""What `regraft submit` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.cli.options import print_json
from pipelines.spec.quantities import format_bytes

if TYPE_CHECKING:
    from pipelines.remote.submit import Submitted


def show_submitted(submitted: Submitted, *, as_json: bool) -> None:
    """The run's name, what went along, and the commands that follow it."""
    submission = submitted.submission
    if as_json:
        print_json({**vars(submission), "already_running": submitted.already, "code": submitted.digest})
        return
    if submitted.already:
        print(f"the very same runs there already, as {submission.run}; nothing new was started")
    else:
        print(f"submitted {submission.run} to {submission.dashboard}")
    print(f"  code   {submitted.num_files} files, {format_bytes(submitted.num_bytes)}, sha256 {submitted.digest[:12]}…")
    print(f"  store  {submission.store}")
    if submitted.missing:
        print(f"  not set here, so not handed on: {', '.join(submitted.missing)}")
    run = submission.run
    print(f"\nnext:\n  regraft logs -f {run}\n  regraft status {run}\n  regraft cancel {run}")
