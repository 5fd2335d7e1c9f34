"""Which tasks of `reasoning-gym` stand: proved one by one, the others counted by what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Literal

from stages.agent.conversation.messages import write_turn
from stages.agent.environment.base import Task
from stages.agent.environment.episodes import prove
from stages.agent.environment.gym.environment import GymEnvironment
from stages.agent.environment.toolbox import Toolbox
from stages.agent.questions.selected import Selected
from stages.errors import StageError, UserError
from stages.seeds import derived_seed

Rejection = Literal["not_made", "repeated", "unsayable", "unproved"]
TRIES: Final = 3
"""Tasks to make for each that is wanted, before a generator is given up."""


class GymSelection(Selected[Task, str]):
    """The tasks that stand, and what is wrong with the others."""

    def __init__(self, environment: GymEnvironment, seed: int) -> None:
        super().__init__()
        self._environment, self._seed, self._asked = environment, seed, set[str]()

    def fill(self, name: str, wanted: int, tell: Callable[[int], None]) -> None:
        """Keep `wanted` tasks of a generator, or what there are; `tell` how many stand.

        Raises UserError for a generator that there is not, or settings that it does not take.
        """
        seed = derived_seed(self._seed, name) % 2**32  # neighbouring seeds of one generator share tasks
        kept, settings = 0, {**self._environment.settings[name], "seed": seed, "size": TRIES * wanted}
        for index in range(TRIES * wanted):
            try:
                entry = self._environment.gym.make(name, settings, index)
            except StageError as problem:
                if index == 0:
                    raise UserError(str(problem), fix=f"mend `tasks.{name}`: {_KNOWN}") from problem
                self._reject("not_made", str(problem))
                continue
            kept += self._judge(name, index, entry)
            tell(len(self.kept))
            if kept == wanted:
                return

    def _judge(self, name: str, index: int, entry: dict[str, Any]) -> bool:
        question, answer = str(entry["question"]), entry["answer"]
        task = Task(f"{name}/{index}", question, (str(answer),), kind=name, data=json.dumps(entry))
        if question in self._asked:
            return self._reject("repeated", question)
        self._asked.add(question)
        try:
            write_turn("", str(answer))
        except ValueError as problem:
            return self._reject("unsayable", f"task {task.id}: {problem}")
        if problems := prove(replace(self._environment, tasks=(task,)), Toolbox({})):
            return self._reject("unproved", problems[0])
        self.kept.append(task)
        return True

    def _reject(self, reason: Rejection, problem: str) -> bool:
        self.rejected.setdefault(reason, []).append(problem)
        return False

    def subject(self, kept: Task) -> str:
        """The question alone."""
        return kept.question

    def shown(self, one: Task | str) -> Any:
        """A question with its answer, a problem as it is."""
        return one if isinstance(one, str) else {"question": one.question, "answer": one.answers[0]}


_KNOWN: Final = "`python -c 'import reasoning_gym.factory as f; print(*f.DATASETS)'` lists generators"
