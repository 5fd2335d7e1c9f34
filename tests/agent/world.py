"""A small world to research: twelve documents, the index over them, questions, and tools that misbehave."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

from stages.agent.conversation.messages import Message, Trajectory, write_turn
from stages.agent.environment.base import Environment, Task, Tool
from stages.agent.environment.collection import build
from stages.agent.environment.index import AgentIndex
from stages.artifacts import Dataset, DatasetCard, Model
from stages.stage import Context, Stage

TEXTS = (
    "Silver Harbour -- Silver Harbour is a 1987 British film directed by Anna Quill. It was shot in Leeds.",
    "The Glass Orchard -- The Glass Orchard is a novel written by Tomas Weld and published in 1954.",
    "Northgate Observatory -- Northgate Observatory is located in Halden, Norway. It was founded in 1911.",
    "Paper Lanterns (album) -- Paper Lanterns is a 2003 album. Critics compared its second side with the plot of "
    "Silver Harbour, which the singer had seen as a child.",
    "Ida Marsh -- Ida Marsh was a painter. She drew the covers of The Glass Orchard and of two cookery books.",
    "Comet Lindqvist -- Comet Lindqvist was first photographed at Northgate Observatory by two students.",
    "Rye bread -- Rye bread is made with flour from rye grain. It is denser than bread made from wheat.",
    "Tin whistle -- The tin whistle is a simple instrument with six holes, common in the music of Ireland.",
    "Salt marsh -- A salt marsh is flooded by the sea and drained by the tide, twice on most days.",
    "Lantern -- A lantern protects a flame from wind. Paper and glass were the usual walls of one.",
    "Orchard -- An orchard is planted for fruit, and is pruned in winter while the trees are asleep.",
    "Observatory -- An observatory houses instruments for looking at the sky, mostly far from cities.",
)


def text_dataset(directory: Path, texts=TEXTS) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), directory / "shard-00000.parquet")
    DatasetCard("text", len(texts), sum(len(t.encode()) for t in texts), licence="CC0-1.0").write(directory)
    return Dataset(directory)


def run(stage: type[Stage], inputs: dict[str, Any], directory: Path, *, seed: int = 0, **params: Any) -> Context:
    """Run a stage as the engine would, its outputs under `directory/out`."""
    built = stage(stage.Params(**params))
    built.preflight()
    built.check(inputs)
    (directory / "scratch").mkdir(parents=True, exist_ok=True)
    events: list[dict] = []
    context = Context(inputs, directory / "out", directory / "scratch", seed, emit=events.append)
    built.run(context)
    context.events = events  # type: ignore[attr-defined]
    return context


def make_index(directory: Path, texts=TEXTS, encoder: Path | None = None, **params: Any) -> Dataset:
    given = {"encoder": Model(encoder)} if encoder else {}
    run(AgentIndex, {"text": text_dataset(directory / "text", texts), **given}, directory, **params)
    return Dataset(directory / "out/index")


def talk(*turns: tuple[str, str], task: str = "t", reward: float = 1.0, answers=("ok",), question="Q?") -> Trajectory:
    """A trajectory of (role, content) pairs after a system's and a user's message."""
    said = [Message(role, content) for role, content in turns]
    start = [Message("system", "S"), Message("user", question)]
    return Trajectory(task, (*start, *said), reward, "answer", question, tuple(answers))


class Echo(Tool):
    """Says what it is told."""

    name: ClassVar[str] = "echo"
    description: ClassVar[str] = "say it again"
    parameters: ClassVar[dict[str, str]] = {"text": "what to say"}

    def __call__(self, **arguments: Any) -> str:
        return str(arguments["text"])


class Hang(Echo):
    """Never answers."""

    name: ClassVar[str] = "hang"

    def __call__(self, **arguments: Any) -> str:
        threading.Event().wait()
        return ""


class Raise(Echo):
    """Fails in the way it is told."""

    name: ClassVar[str] = "raise"

    def __call__(self, **arguments: Any) -> str:
        raise {"value": ValueError, "key": KeyError, "exit": RuntimeError}[arguments["text"]]("no such thing")


class Parrot(Environment):
    """The answer is what the tool says: another environment, in a few lines."""

    def __init__(self, words=("tree", "stone")) -> None:
        from stages.agent.conversation.messages import ToolCall

        self.tools = {"echo": Echo()}
        self.tasks = [
            Task(word, f"What does the parrot say to {word}?", (word,), (ToolCall("echo", {"text": word}),))
            for word in words
        ]

    def reward(self, task: Task, answer: str) -> float:
        return float(answer in task.answers)


__all__ = ["Echo", "Hang", "Parrot", "Raise", "build", "make_index", "run", "talk", "text_dataset", "write_turn"]
