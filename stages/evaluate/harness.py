"""EleutherAI's lm-evaluation-harness in this process: the model is loaded already, progress is told, figures are plain.

Import this module only where `lm_eval` is needed: it takes five seconds.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import constants
from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.errors import StageError, UserError
from stages.evaluate.precision import gives_nan
from stages.evaluate.tasks_data import FOLDER, LOCAL_TASKS, load_items
from stages.source.hub import transport_errors
from stages.source.locate import nearest
from stages.stage import Progress

REQUESTS_AT_ONCE: Final = 64
"""Requests between two reports of progress; the harness sorts by length within them."""


class WatchedModel(HFLM):
    """The harness's wrapper of a loaded model, told how to take log-probabilities and whom to tell of progress.

    Log-probabilities are float32 in whatever type the model computes. Requests that exceed the model's context, which
    the harness cuts at the front, are counted in `num_truncated`. NaN raises UserError.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, progress: Progress
    ) -> None:
        super().__init__(model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32)
        self.num_truncated = 0
        self._progress = progress

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's continuation, and whether it is the greedy one."""
        return self._in_parts(requests, super().loglikelihood, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The text that each request's context is continued with."""
        return self._in_parts(requests, super().generate_until, disable_tqdm)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: the harness would ask the hub about the model."""
        return {}

    def _in_parts(self, requests: list[Instance], answer: Callable[..., list[Any]], disable_tqdm: bool) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(requests), REQUESTS_AT_ONCE):
            found += answer(requests[start : start + REQUESTS_AT_ONCE], disable_tqdm=disable_tqdm)
            self._progress(len(found), len(requests), "requests")
        return found

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        limit = self.max_length + 1  # the last token is predicted, not read
        self.num_truncated += sum(len(context) + len(answer) > limit for _, context, answer in requests)
        found = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        for (_, context, answer), (value, _greedy) in zip(requests, found, strict=True):
            if math.isnan(value):
                raise gives_nan(f"the model gives NaN for a continuation of {len(answer)} tokens after {len(context)}")
        return found


def load_tasks(names: Sequence[str], include_path: Path | None) -> list[Task | Group]:
    """The tasks and groups of the harness with their documents, in the order of `names`.

    The hub is out of reach while the tasks are local ones alone. Raises UserError for an unknown name and for a task
    named twice over, StageError when documents cannot be read.
    """
    manager = _manager(names, include_path)
    with _quiet(), _offline(set(names) <= LOCAL_TASKS.keys()):
        loaded = [item for name in names for item in _load(name, manager)]
        try:
            manager.load(loaded)
        except ValueError as error:
            raise UserError(str(error), fix="name a group or its members, not both") from None
    return loaded


def _manager(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """The index of the tasks that `names` are looked up in; the harness's own files are read only where needed."""
    paths = [str(path) for path in (include_path, FOLDER) if path is not None]  # the last one wins: ours
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=paths)
    for name in names:
        if name not in manager.task_index:
            raise UserError(f"unknown task {name!r}{nearest(name, manager.all_tasks)}", fix="correct the task's name")
    return manager


def _load(name: str, manager: TaskManager) -> list[Task | Group]:
    try:
        loaded = manager.load([name])
    except (OSError, *transport_errors()) as error:
        raise StageError(
            f"the documents of task {name!r} could not be read: {type(error).__name__}: {error}",
            fix="those on the Hugging Face hub need the network; local tasks do not",
        ) from error
    tasks = loaded["tasks"]
    if name in LOCAL_TASKS:
        assert tasks[name].config.custom_dataset is load_items, f"{name} does not read its documents offline"
    groups = loaded.get("groups", {})
    return [groups[name]] if name in groups else list(tasks.values())


@dataclass(frozen=True)
class Settings:
    """How tasks are run; see the parameters of `evaluate.tasks`."""

    num_fewshot: int | None
    limit: int | None
    batch_size: int
    seed: int


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task | Group],
    settings: Settings,
    progress: Progress,
) -> dict[str, Any]:
    """The harness's results for `tasks` of `load_tasks`, samples included, and `num_truncated` requests.

    Few-shot examples are drawn from the seed. The hub is out of reach while the tasks are local ones alone.
    """
    local = all(isinstance(task, Task) and task.task_name in LOCAL_TASKS for task in tasks)
    with _quiet(), _offline(local):
        watched = WatchedModel(model, tokenizer, settings.batch_size, progress)
        results = simple_evaluate(
            model=watched,
            tasks=list(tasks),
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
        )
    assert results is not None, "a single process has rank 0"
    return {**results, "num_truncated": watched.num_truncated}


def harness_version() -> str:
    """Version of the installed harness."""
    return version("lm_eval")


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """While it lasts and where `wanted`, the hub's libraries refuse to use the network."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before, flag = {name: os.environ.get(name) for name in names}, constants.HF_HUB_OFFLINE
    if wanted:
        os.environ.update(dict.fromkeys(names, "1"))
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = flag
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of the harness about ways to call it that are meant here."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
