"""The process that `reasoning-gym` runs in: a request a line on standard input, a reply a line on standard output.

Started by `process.Gym`, to which it says first that it is ready; its argument is the seconds after which a reply ends
it, so that one which nobody waits for any more does not go on for ever. It knows nothing of this project, and nothing
that a scorer does to an answer (some evaluate it as an expression) reaches any other process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import cache
from importlib import import_module
from typing import Any


@cache
def generator(task: str, settings: str) -> Any:
    """A generator with its settings, which are JSON."""
    return import_module("reasoning_gym").create_dataset(task, **json.loads(settings))


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """An entry for a request with `index`, else the score of `answer` for `entry`.

    A request names the `task`, and the `settings` of its generator.
    """
    dataset = generator(request["task"], json.dumps(request["settings"], sort_keys=True))
    if "index" in request:
        entry = dataset[request["index"]]
        return {"entry": {name: entry[name] for name in ("question", "answer", "metadata")}}
    return {"score": float(dataset.score_answer(request["answer"], request["entry"]))}


def main() -> None:
    """Say that it is ready, then answer until standard input ends. What a generator or scorer raises is the reply."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    import_module("reasoning_gym")
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        signal.alarm(int(sys.argv[1]))
        try:
            text = json.dumps(reply(json.loads(line)))
        except Exception as problem:  # the boundary between that library and this project
            text = json.dumps({"problem": f"{type(problem).__name__}: {problem}"})
        signal.alarm(0)
        print(text, file=replies, flush=True)


if __name__ == "__main__":
    main()
