"""The same failures with the tools in an actor: one that hangs is killed and replaced."""

from __future__ import annotations

import pytest

from stages.agent.conversation.messages import ToolCall
from stages.agent.environment.base import Observation
from stages.agent.environment.toolbox import Toolbox
from tests.agent.world import Echo, Hang, Raise

ECHO = ToolCall("echo", {"text": "hi"})


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_tools_in_an_actor(cluster):
    with Toolbox({"echo": Echo(), "hang": Hang(), "raise": Raise()}, timeout=30) as toolbox:
        first, second = toolbox.call([ECHO, ToolCall("raise", {"text": "key"})])
        assert toolbox._actor is not None, "they do run in an actor"
        assert (first, second.failure) == (Observation("hi"), "error")
        toolbox.timeout = 1.0
        assert toolbox.call([ECHO, ToolCall("hang", {"text": ""})])[1].failure == "timeout"
        assert toolbox._actor is None, "it is killed"
        toolbox.timeout = 30
        assert toolbox.call([ECHO]) == [Observation("hi")], "a new actor has taken its place"
