"""Running tools so that nothing they do reaches the caller but an observation: in time, or not at all.

Where this process belongs to a Ray cluster, calls run in an actor, which is replaced when a call hangs or ends it;
elsewhere each runs in a thread that is left behind. A call that raises, hangs, names no tool or gives the wrong
arguments is answered with words that a model can act on.
"""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stages.agent.actors import start_actor
from stages.agent.conversation.messages import ToolCall
from stages.agent.environment.base import Observation, Tool
from stages.errors import StageError

MOST_CHARACTERS: Final = 20_000
"""Of one observation, whatever a tool returns."""
START_SECONDS: Final = 300
"""In which an actor has to come up, on a busy machine too."""
_LOST: Final = Observation("Error: the tool's process was lost.", "error")


@dataclass
class Toolbox:
    """The tools of an environment, ready to be called; `close` it, or use it as a context manager.

    `timeout` is in seconds, of each batch of calls.
    """

    tools: Mapping[str, Tool]
    timeout: float = 30.0
    _actor: Any = field(default=None, repr=False)
    _prepared: bool = field(default=False, repr=False)

    def call(self, calls: Sequence[ToolCall]) -> list[Observation]:
        """An observation for each call, in order; the calls run side by side."""
        found = [_refusal(self.tools, call) for call in calls]
        sound = [index for index, refusal in enumerate(found) if refusal is None]
        run = self._run_in_actor if _in_ray() else self._run_in_threads
        for index, observation in zip(sound, run([calls[index] for index in sound]), strict=True):
            found[index] = observation
        return [observation for observation in found if observation is not None]

    def close(self) -> None:
        """Let go of the actor, if there is one."""
        if self._actor is not None:
            import ray

            ray.kill(self._actor)
            self._actor = None

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_in_threads(self, calls: Sequence[ToolCall]) -> list[Observation]:
        if not self._prepared:
            _prepare(self.tools)
            self._prepared = True
        results: list[Observation] = [self._late(call) for call in calls]
        threads = [
            threading.Thread(target=_into, args=(results, index, self.tools, call), name="tool", daemon=True)
            for index, call in enumerate(calls)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + self.timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return list(results)  # a copy: a late thread writes into the list that is left

    def _run_in_actor(self, calls: Sequence[ToolCall]) -> list[Observation]:
        if not calls:
            return []
        self._actor = self._actor or _start(self.tools)
        waiting = [self._actor.run.remote(call).future() for call in calls]
        done, late = concurrent.futures.wait(waiting, self.timeout)
        fetched = {future: _fetched(future) for future in done}
        if late or None in fetched.values():
            self.close()
        return [fetched.get(future, self._late(call)) or _LOST for future, call in zip(waiting, calls, strict=True)]

    def _late(self, call: ToolCall) -> Observation:
        return Observation(f"Error: {call.name} did not answer within {self.timeout:g} s.", "timeout")


class _Tools:
    """The tools, in an actor."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.tools = tools

    def ready(self) -> None:
        """Get ready: that it returns says that the actor runs."""
        _prepare(self.tools)

    def run(self, call: ToolCall) -> Observation:
        return _run(self.tools, call)


def _start(tools: Mapping[str, Tool]) -> Any:
    """An actor that runs: starting one takes no time from a call. Raises StageError when none comes up."""
    options = {"num_cpus": 0, "max_concurrency": 16}
    actor = start_actor(_Tools, dict(tools), purpose="tools", seconds=START_SECONDS, **options)
    if actor is None:
        raise StageError(f"no process for tools after {START_SECONDS} s", fix="the cluster may be full: retry")
    return actor


def _prepare(tools: Mapping[str, Tool]) -> None:
    for tool in tools.values():
        tool.prepare()


def _run(tools: Mapping[str, Tool], call: ToolCall) -> Observation:
    """Run a sound call. A tool's exception is a result: what a ValueError says is meant for the model."""
    try:
        return Observation(str(tools[call.name](**call.arguments))[:MOST_CHARACTERS])
    except ValueError as error:
        return Observation(f"Error: {error}"[:MOST_CHARACTERS], "arguments")
    except Exception as error:  # the boundary: whatever a tool raises ends here, as data
        return Observation(f"Error: {call.name} failed: {type(error).__name__}: {error}"[:MOST_CHARACTERS], "error")


def _into(results: list[Observation], index: int, tools: Mapping[str, Tool], call: ToolCall) -> None:
    results[index] = _run(tools, call)


def _refusal(tools: Mapping[str, Tool], call: ToolCall) -> Observation | None:
    """Why a call cannot be made, None when it can."""
    tool = tools.get(call.name)
    if tool is None:
        return Observation(f"Error: there is no tool {call.name[:100]!r}; there are {', '.join(tools)}.", "unknown")
    if call.arguments.keys() != tool.parameters.keys():
        return Observation(f"Error: {tool.name} takes the arguments {', '.join(tool.parameters)}.", "arguments")
    for name, value in call.arguments.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return Observation(f"Error: {name} has to be a text or a number.", "arguments")
    return None


def _fetched(finished: concurrent.futures.Future[Observation]) -> Observation | None:
    """The observation of a finished call; None where the actor died of this call or another."""
    from ray.exceptions import RayError

    try:
        return finished.result()
    except RayError:
        return None


def _in_ray() -> bool:
    """Whether this process belongs to a Ray cluster. Ray is not imported to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()
