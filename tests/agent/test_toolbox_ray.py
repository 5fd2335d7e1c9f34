"""The same failures with the tools in an actor: one that hangs is killed, and one that is gone is replaced."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import pytest

from stages.agent.conversation.messages import ToolCall
from stages.agent.environment.base import Observation
from stages.agent.environment.toolbox import Toolbox
from stages.errors import StageError
from tests.agent.world import Echo, Hang, Raise

ECHO = ToolCall("echo", {"text": "hi"})


class Die(Echo):
    """Takes its process with it, as the kernel does when memory runs out."""

    name: ClassVar[str] = "die"

    def __call__(self, **arguments: Any) -> str:
        os._exit(1)


class DieOnArrival(Echo):
    """Ends the process that it is sent to."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


class Where(Echo):
    """Says which node it runs on."""

    name: ClassVar[str] = "where"

    def __call__(self, **arguments: Any) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, this process on the first."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
    nodes.add_node(num_cpus=1, object_store_memory=80_000_000)
    ray.init(address=nodes.address, log_to_driver=False)
    yield
    ray.shutdown()
    nodes.shutdown()


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


def test_a_process_that_dies_is_replaced(cluster):
    with Toolbox({"echo": Echo(), "die": Die()}, timeout=60) as toolbox:
        (lost,) = toolbox.call([ToolCall("die", {"text": ""})])
        assert (lost.failure, toolbox._actor) == ("error", None)
        assert toolbox.call([ECHO]) == [Observation("hi")]


def test_a_process_that_dies_as_it_starts_is_an_error_of_the_stage(cluster):
    with Toolbox({"echo": DieOnArrival()}) as toolbox, pytest.raises(StageError, match="died as it started"):
        toolbox.call([ECHO])


def test_tools_run_where_the_artifacts_are(cluster):
    import ray

    for _ in range(4):
        with Toolbox({"where": Where()}, timeout=60) as toolbox:
            (found,) = toolbox.call([ToolCall("where", {"text": ""})])
            assert found.text == ray.get_runtime_context().get_node_id()
