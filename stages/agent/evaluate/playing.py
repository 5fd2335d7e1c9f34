"""Every question with every seed, a batch side by side after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.agent.conversation.rendering import Renderer
from stages.agent.environment.base import Environment
from stages.agent.environment.toolbox import Toolbox
from stages.agent.evaluate.scores import Outcome
from stages.agent.rollout.engine import Engine
from stages.agent.rollout.rollouts import Room, roll_out, succeeds
from stages.seeds import derived_seed
from stages.stage import Context

if TYPE_CHECKING:
    from stages.agent.evaluate.stage import AgentEvaluateParameters


def play_questions(
    context: Context, engine: Engine, environment: Environment, renderer: Renderer, params: AgentEvaluateParameters
) -> list[Outcome]:
    """What came of every question, seed by seed; what is drawn depends on seed and task alone."""
    room = Room(params.turns, params.turn_tokens, params.window)
    asked = [(seed, task) for seed in params.seeds for task in list(environment.tasks)[: params.questions]]
    played: list[Outcome] = []
    with Toolbox(environment.tools, params.tool_seconds) as tools:
        for start in range(0, len(asked), params.batch_size):
            part = asked[start : start + params.batch_size]
            seeds = [derived_seed(seed, task.id) for seed, task in part]
            rollouts = roll_out(engine, environment, tools, renderer, [task for _, task in part], seeds, room)
            for (seed, task), found in zip(part, rollouts, strict=True):
                success = succeeds(environment, task, found)
                tokens = found.num_sampled, len(found.ids)
                played.append(Outcome(seed, found.trajectory, success, *tokens, dict(found.counts)))
            context.progress(len(played), len(asked), "episodes")
    return played
