"""What an environment is: tasks, the tools to solve them with, and what an answer is worth.

Those that come with the project are in `research`, `gym` and `stages.agent.report`. Another needs a subclass of
`Environment` and tools; `episodes` plays it and proves it, and `toolbox` runs tools with timeouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol

from stages.agent.conversation.messages import Message, ToolCall

if TYPE_CHECKING:
    from stages.agent.environment.episodes import AnyEpisode, Limits

FORM: Final = (
    "Each turn is one thought and one action, a tool call in JSON or the answer, as short as possible:\n"
    '<think>…</think>\n<tool_call>{"name": "…", "arguments": {…}}</tool_call>\n'
    "<think>…</think>\n<answer>…</answer>"
)
Failure = Literal["unknown", "arguments", "timeout", "error"]
"""Why a tool gave no result: no tool of that name, arguments it does not take, too slow, an exception."""


@dataclass(frozen=True)
class Observation:
    """What the model reads after a call: a result, or what went wrong, in words."""

    text: str
    failure: Failure | None = None


@dataclass(frozen=True)
class Task:
    """A question, the answers that count as right, and a solution: calls after which the answer can be read off."""

    id: str
    question: str
    answers: tuple[str, ...]
    solution: tuple[ToolCall, ...] = ()
    thoughts: tuple[str, ...] = ()
    """What could be thought before each call of the solution, and before the answer; empty where nobody says."""
    kind: str = ""
    """Groups tasks in reports."""
    data: str = ""
    """What the environment alone knows of it, such as how to score it."""


class Tool(ABC):
    """Something a model can call by name. Picklable: it may run in another process."""

    name: ClassVar[str]
    description: ClassVar[str]
    """One line for the model."""
    parameters: ClassVar[Mapping[str, str]]
    """Every argument with its meaning; all are required, and given as a text or a number."""

    def prepare(self) -> None:
        """Load what calls need, so that the first one is no slower: its time is not counted."""

    @abstractmethod
    def __call__(self, **arguments: Any) -> str:
        """The result as text. Raises ValueError, in words for the model, for arguments that name nothing."""


class Environment(ABC):
    """Tasks of one kind, the tools to solve them with, and what an answer is worth. Picklable."""

    tools: Mapping[str, Tool]
    """The tools by name, as the model may call them."""
    tasks: Sequence[Task]
    """All tasks, in a fixed order."""

    @abstractmethod
    def reward(self, task: Task, answer: str) -> float:
        """What `answer` is worth, in [0, 1]; each of `task.answers` is worth 1 in an environment that proves itself."""

    def success(self, task: Task, answer: str, reward: float) -> bool:  # noqa: ARG002, others look at the answer
        """Whether `answer`, which earned `reward`, is right: worth all of it, unless an environment says otherwise."""
        return reward >= 1.0

    def prompt(self, task: Task) -> tuple[Message, ...]:
        """The messages that an episode begins with."""
        return Message("system", system_prompt(self.tools)), Message("user", task.question)

    def episode(self, task: Task, limits: Limits) -> AnyEpisode:
        """An episode about `task` that has not begun."""
        from stages.agent.environment.episodes import Episode

        return Episode(self, task, limits)


class Runner(Protocol):
    """What runs tools, such as `Toolbox`: never raises for what a tool does."""

    def call(self, calls: Sequence[ToolCall]) -> list[Observation]:
        """An observation for each call, in order."""
        ...


def system_prompt(tools: Mapping[str, Tool]) -> str:
    """What the model is told: the tools, and the form of a turn."""
    lines = [f"- {tool.name}({', '.join(tool.parameters)}): {tool.description}" for tool in tools.values()]
    return "\n".join(["Answer the question with the help of these tools:", *lines, "", FORM])
