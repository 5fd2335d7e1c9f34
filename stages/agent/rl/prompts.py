"""Which tasks a policy can be asked, given the room it has, and whether the environment has what it earns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.agent.conversation.messages import write_turn
from stages.agent.conversation.rendering import Renderer
from stages.agent.environment.base import Environment, Task
from stages.errors import UserError, listing
from stages.source.locate import nearest

if TYPE_CHECKING:
    from stages.agent.rl.rules import CreditRule
    from stages.agent.rl.settings import PolicyParameters
    from stages.training.recipe import Worker


def fitting(environment: Environment, renderer: Renderer, params: PolicyParameters, worker: Worker) -> list[Task]:
    """The tasks whose prompt leaves room for a turn, and for an answer that is scored. Says how many do not.

    Raises UserError when fewer are left than a step asks, or an answer is none.
    """
    needed = [_needed(environment, renderer, params, task) for task in environment.tasks]
    tasks = [task for task, length in zip(environment.tasks, needed, strict=True) if length <= params.window]
    if len(tasks) < params.questions:
        raise UserError(
            f"{len(tasks)} of {len(needed)} questions leave room for a turn of {params.turn_tokens} tokens in a window "
            f"of {params.window}, but a step asks {params.questions}; the shortest needs {min(needed)} tokens",
            fix="raise `window`, lower `turn_tokens` or `questions`, or give more questions",
        )
    if len(tasks) < len(needed) and worker.rank == 0:
        text = f"{len(needed) - len(tasks)} of {len(needed)} questions do not fit into the window: left out"
        worker.emit({"event": "message", "text": text})
    return tasks


def check_gains(environment: Environment, rule: CreditRule, worker: Worker) -> None:
    """Say where gains are asked for and there are no tools. Raises UserError for `gain_tools` that there are not."""
    if not rule.scores:
        return
    for name in rule.gain_tools or ():
        if name not in environment.tools:
            raise UserError(
                f"gain_tools: {name!r}, which is no tool of the environment{nearest(name, environment.tools)}",
                fix=f"choose among {listing(list(environment.tools)) or 'none, for it has no tools'}",
            )
    if not environment.tools and worker.rank == 0:
        text = f"credit: {rule.credit} counts what tools reveal, and the environment has none: `outcome` is simpler"
        worker.emit({"event": "message", "text": text})


def _needed(environment: Environment, renderer: Renderer, params: PolicyParameters, task: Task) -> int:
    """Tokens of the prompt, and of the longer of a turn and the true answer."""
    prompt = renderer.encode(environment.prompt(task), open_turn=True).ids
    answer = _scored(renderer, params, task) if params.credit_rule.scores else []
    return len(prompt) + max(params.turn_tokens, len(answer))


def _scored(renderer: Renderer, params: PolicyParameters, task: Task) -> list[int]:
    """The turn in which the true answer is scored. Raises UserError for an answer that nobody can give."""
    if not task.answers[0].strip():
        raise UserError(f"the answer of question {task.id} is empty", fix="mend it, or leave the question out")
    try:
        return renderer.encode_text(write_turn(params.credit_rule.answer_thought, task.answers[0]))
    except ValueError as error:
        raise UserError(f"the answer of question {task.id} cannot be scored: {error}", fix="mend it") from error
