"""`agent.collect`: trajectories of a scripted expert, so that an agent can be taught without a larger one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field

from stages.artifacts import Dataset, Report, write_report
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

Share = Annotated[float, Field(ge=0, le=1)]


class CollectParameters(Parameters):
    """How many trajectories, and how the expert errs: each error strikes a trajectory by itself."""

    per_question: Annotated[int, Field(ge=1)] = 1
    """Trajectories of each question; more than one differ by their errors alone."""
    detour: Share = 0.0
    """Share in which the expert first searches for something else, then gets it right."""
    repeat: Share = 0.0
    """Share in which it makes a call twice."""
    foreign: Share = 0.0
    """Share in which it calls a tool that the environment does not have."""
    malformed: Share = 0.0
    """Share in which a turn is not of the form."""
    wrong: Share = 0.0
    """Share in which the answer is wrong."""
    tool_seconds: Annotated[float, Field(gt=0), EXECUTION] = 30
    """Seconds that tools have to answer."""

    def smoke(self) -> Self:
        """One trajectory of each question."""
        return self.replaced(per_question=1)


class AgentCollect(Stage):
    """Play the verified solutions of questions, with a thought before each call, as trajectories to learn from.

    The tools really run: what they say in a trajectory is what they say. Errors may be mixed in, as in the trajectories
    of a real model: `agent.clean` finds those that a student should not see.
    """

    Params = CollectParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "index": Input(Dataset, schema="text"),
        "questions": Input(Dataset, schema="messages"),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "trajectories": Output(Dataset, schema="trajectories"),
        "report": Output(Report),
    }
    metrics = ("trajectories", "success", "turns", "errors_*")
    params: CollectParameters

    def run(self, context: Context) -> None:
        """Script, play, write."""
        from stages.agent.conversation.records import write_trajectories
        from stages.agent.environment.research import open_environment
        from stages.agent.environment.toolbox import Toolbox
        from stages.agent.trajectories.expert import Errors, collect

        params = self.params
        environment = open_environment(context.dataset("index"), context.dataset("questions"))
        errors = Errors(params.detour, params.repeat, params.foreign, params.malformed, params.wrong)
        with Toolbox(environment.tools, params.tool_seconds) as tools:
            found, made = collect(environment, tools, errors, params.per_question, context.seed, context.progress)
        card = context.dataset("questions").card
        write_trajectories(context.output("trajectories"), found, licence=card.licence, source=card.source)
        context.metrics(
            trajectories=len(found),
            success=sum(one.reward >= 1 for one in found) / len(found),
            turns=sum(len(one.turns) for one in found) / len(found),
            **{f"errors_{name}": count for name, count in made.items()},
        )
        details = {"parameters": params.identity(), "seed": context.seed, "sample": _shown(found[0].messages)}
        write_report(context.output("report"), "Collected trajectories", context.results, details)


def _shown(messages: tuple) -> list[dict[str, str]]:
    return [message.record() for message in messages]
