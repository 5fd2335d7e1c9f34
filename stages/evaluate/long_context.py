"""`evaluate.long_context`: what a model recalls from how far back."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_room
from stages.evaluate.needles_scripts import LISTING, TASKS, Task
from stages.evaluate.precision import ComputeType
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from stages.evaluate.long_context_grid import Cell, Grid
    from stages.evaluate.long_context_scoring import Recall
    from stages.evaluate.needles import Probe
    from stages.evaluate.needles_text import Pieces

HAYSTACK_TOKENS = 1 << 18
"""Tokens of text to draw passages from, at least; four times the longest length where that is more."""

FIGURE = "long_context.svg"


class LongContextParams(Parameters):
    """Which probes, how many, and in what precision the model runs."""

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = TASKS
    """RULER's single needle, needles with several keys, one key with several values, and variable tracking."""
    lengths: Annotated[tuple[Annotated[int, Field(ge=64)], ...], Field(min_length=1)] = (256, 512, 1024)
    """Tokens of a probe, prompt and answer together; each is met exactly."""
    depths: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    )
    """Where the needle stands in the text: 0 is its beginning, 1 its end. Where a task has several, they spread over
    half of the text, which 0 puts at the beginning and 1 at the end; the distractors of multi_key stand anywhere."""
    probes: Annotated[int, Field(ge=1)] = 8
    """Probes of each task at each length and depth."""
    needles: Annotated[int, Field(ge=2, le=64)] = 4
    """Keys of multi_key, values of multi_value, variables of variable_tracking."""
    generate: bool = False
    """Also let the model write its answer, greedily, and look for the values in it. Much slower."""
    dtype: ComputeType = "auto"
    """Type the model computes in. Log-probabilities are always float32."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Probes in a forward pass; all of a length are equally long, so nothing is padded."""
    trust_remote_code: bool = False
    """Run the code that comes in the model's directory, for an architecture that `transformers` lacks."""

    @field_validator("tasks", "lengths", "depths")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"a value is given more than once: {list(values)}")
        return tuple(sorted(values)) if not isinstance(values[0], str) else values

    def smoke(self) -> Self:
        """One probe of each task, at one length and two depths."""
        return self.replaced(lengths=(1024,), depths=(0.0, 1.0), probes=1, needles=2)


class EvaluateLongContext(Stage):
    """Hide statements in real text and ask for them: needle in a haystack and variable tracking as in RULER.

    The answer is scored by teacher forcing: its log-likelihood, and whether every token of it is the model's first
    choice given the true ones before. Prompts are plain text, without the chat template. The report holds a grid of
    length × depth for each task and draws it.
    """

    Params = LongContextParams
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model), "text": Input(Dataset, schema="text")}
    outputs: ClassVar[Mapping[str, Output]] = {"report": Output(Report)}
    metrics = (
        "needle_accuracy",
        "needle_nll",
        *(f"{task}_{figure}" for task in TASKS for figure in ("accuracy", "accuracy_*", "nll", "generated")),
        *(f"{task}_recall" for task in LISTING),
    )
    paper = "2404.06654"
    params: LongContextParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model has a tokenizer, and its context holds the longest probe; there is text."""
        require_room(inputs["model"], max(self.params.lengths), "lengths")
        if inputs["text"].card.num_rows == 0:
            raise UserError(f"{inputs['text'].path} has no documents", where="text", fix="give some text")

    def run(self, context: Context) -> None:
        """Make the probes, load the model, score, report."""
        from stages.evaluate.loading import computed_in, load_for_evaluation
        from stages.evaluate.long_context_grid import Grid, draw
        from stages.evaluate.needles_text import Pieces

        params, source = self.params, context.model("model")
        pieces = Pieces(source)
        probes = dict(self._probes(context, pieces))
        model = load_for_evaluation(source, params.dtype, trust_remote_code=params.trust_remote_code)
        grid = Grid(params.tasks, params.lengths, params.depths)
        self._score(context, model, pieces, probes, grid)
        context.metrics(**grid.metrics())
        draw(grid, context.output("report") / FIGURE)
        details = {
            "grid": {"lengths": grid.lengths, "depths": grid.depths, "tasks": grid.tables()},
            "figures": [FIGURE],
            "probes": sum(map(len, probes.values())),
            "seed": context.seed,
            "parameters": params.identity(),
            "computed_in": computed_in(params.dtype),
        }
        write_report(context.output("report"), "Long context", context.results, details)

    def _probes(self, context: Context, pieces: Pieces) -> Iterator[tuple[Cell, list[Probe]]]:
        from stages.evaluate.needles import make_probe
        from stages.evaluate.needles_text import Haystack, texts_of

        params = self.params
        least = max(HAYSTACK_TOKENS, 4 * max(params.lengths))
        haystack = Haystack(texts_of(context.dataset("text")), pieces, least)
        # longest first: what is too short or too large is found out at once
        for length, task, depth in product(params.lengths[::-1], params.tasks, params.depths):
            yield (
                (task, length, depth),
                [
                    make_probe(
                        task,
                        length,
                        depth,
                        pieces=pieces,
                        haystack=haystack,
                        num_needles=params.needles,
                        seed=f"{context.seed}/{number}",
                    )
                    for number in range(params.probes)
                ],
            )

    def _score(
        self, context: Context, model: PreTrainedModel, pieces: Pieces, probes: Mapping[Cell, list[Probe]], grid: Grid
    ) -> None:
        from stages.evaluate.distance import evaluating
        from stages.evaluate.long_context_scoring import generate, recall
        from stages.evaluate.prediction import Predictor

        size, done, total = self.params.batch_size, 0, sum(map(len, probes.values()))
        total *= 1 + self.params.generate
        predictor = Predictor(model)
        with evaluating(model):
            for length in self.params.lengths[::-1]:
                same = [(cell, probe) for cell, of_cell in probes.items() if cell[1] == length for probe in of_cell]
                found: list[Recall] = []
                for start in range(0, len(same), size):
                    found += recall(predictor, [probe for _, probe in same[start : start + size]])
                    context.progress(done + len(found), total, "probes")
                done += len(found)
                if self.params.generate:
                    for place, one in generate(model, pieces, [probe for _, probe in same], list(found), size):
                        found[place] = one
                        done += 1
                        context.progress(done, total, "probes")
                for (cell, _), one in zip(same, found, strict=True):
                    grid.add(cell, one)
