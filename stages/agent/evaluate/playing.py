"""Every question with every seed, a batch side by side after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.agent.conversation.rendering import Renderer
from stages.agent.environment.base import Environment, Task
from stages.agent.environment.toolbox import Toolbox
from stages.agent.rollout.engine import Engine
from stages.agent.rollout.rollouts import Rollout, Room, derived_seed, roll_out
from stages.stage import Context

if TYPE_CHECKING:
    from stages.agent.evaluate.stage import AgentEvaluateParameters


def play_questions(
    context: Context, engine: Engine, environment: Environment, renderer: Renderer, params: AgentEvaluateParameters
) -> list[tuple[int, Task, Rollout]]:
    """The rollouts with their seeds and tasks, seed by seed; what is drawn depends on seed and task alone."""
    room = Room(params.turns, params.turn_tokens, params.window)
    asked = [(seed, task) for seed in params.seeds for task in list(environment.tasks)[: params.questions]]
    played: list[tuple[int, Task, Rollout]] = []
    with Toolbox(environment.tools, params.tool_seconds) as tools:
        for start in range(0, len(asked), params.batch_size):
            part = asked[start : start + params.batch_size]
            seeds = [derived_seed(seed, task.id) for seed, task in part]
            rollouts = roll_out(engine, environment, tools, renderer, [task for _, task in part], seeds, room)
            played += [(seed, task, rollout) for (seed, task), rollout in zip(part, rollouts, strict=True)]
            context.progress(len(played), len(asked), "episodes")
    return played
