"""`transfer.score_heads`: which attention heads a model's answers rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.long_context import HAYSTACK_TOKENS
from stages.evaluate.matching import require_room
from stages.evaluate.needles_scripts import Task
from stages.evaluate.precision import ComputeType
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from stages.transfer.heads import head_shape

if TYPE_CHECKING:
    from stages.transfer.patching import Effects
    from stages.transfer.probing import Pair, Prober
    from stages.transfer.recording import Body
    from stages.transfer.survey import Inquiry

FIGURE: Final = "head-map.svg"
Capability = Literal["retrieval", "general"]
Method = Literal["exact", "attribution", "both"]


class ScoreHeadsParams(Parameters):
    """Which pairs of texts, how many, and how effects are measured."""

    capabilities: Annotated[tuple[Capability, ...], Field(min_length=1)] = ("retrieval", "general")
    """What heads are scored for, with equal weight: finding needles in long text, and predicting words of real text."""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("single", "multi_key")
    """Tasks of `retrieval`; each at each depth is a sub-probe."""
    depths: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.25, 0.75)
    """Where the needle stands in the text: 0 is its beginning, 1 its end."""
    needles: Annotated[int, Field(ge=2, le=64)] = 4
    """Keys of multi_key, values of multi_value, variables of variable_tracking."""
    reaches: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (8, 64)
    """Sub-probes of `general`: words are exchanged among so many tokens before the predicted one."""
    pairs: Annotated[int, Field(ge=1)] = 8
    """Pairs wanted of each sub-probe."""
    attempts: Annotated[int, Field(ge=1)] = 8
    """Pairs tried, at most, for each one wanted: those that the model fails are dropped."""
    length: Annotated[int, Field(ge=64)] = 1024
    """Tokens of a text, at most; a needle's text has exactly so many. The paper uses 4096."""
    method: Method = "exact"
    """`exact` patches every head, `attribution` takes a gradient instead, at about the cost of a few forward passes a
    pair; `both` scores exactly and reports how well attribution agrees."""
    rounds: Annotated[int, Field(ge=0, le=4)] = 2
    """How many steps back from the logits to look for heads that act through others. 0 counts direct effects only."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """λ: the weight of an answer's token relative to the one before it."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The effect above which a head counts, as a share of the logit difference."""
    require_correct: bool = True
    """Whether to drop pairs that the model answers wrongly, or that change its answer by less than `least_drop`."""
    least_drop: Annotated[float, Field(gt=0)] = 1.0
    """How far the logit difference has to fall from the clean text to the other, in logits."""
    dtype: ComputeType = "float32"
    """Type the model computes in. Half precision rounds away the effects of most heads."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8192
    """Token positions that go through a layer at once, in all patched copies together."""

    @field_validator("capabilities", "tasks", "depths", "reaches")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"a value is given more than once: {list(values)}")
        return values

    def smoke(self) -> Self:
        """One pair of each kind, whether or not the model gets it right."""
        short = {"tasks": ("single",), "depths": (0.9,), "reaches": (16,), "pairs": 1, "attempts": 1}
        return self.replaced(**short, length=1024, rounds=min(self.rounds, 1), require_correct=False)


class ScoreHeads(Stage):
    """Score every query head by what it causes, with counterfactual activation patching as in HydraHead.

    Pairs of texts differ in the words that an answer rests on. A head's output is exchanged for that of the other text,
    and its score is the share of the answer's logit difference that goes with it: directly (received effect), or by way
    of the heads that matter directly (sent effect). The report holds the map of scores, for `transfer.select_heads`.
    """

    Params = ScoreHeadsParams
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model), "text": Input(Dataset, schema="text")}
    outputs: ClassVar[Mapping[str, Output]] = {"scores": Output(Report)}
    metrics = ("pairs_used", "pairs_dropped", "critical_share", "gini", "attribution_rank_correlation")
    paper = "2606.20097"
    params: ScoreHeadsParams

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The model's heads can be patched, it has a tokenizer, its context holds the texts; there is text."""
        model: Model = inputs["model"]
        head_shape(model)
        require_room(model, self.params.length, "length")
        if inputs["text"].card.num_rows == 0:
            raise UserError(f"{inputs['text'].path} has no documents", where="text", fix="give some text")

    def run(self, context: Context) -> None:
        """Make pairs, load the model, measure, score, report."""
        from stages.evaluate.loading import load_for_evaluation
        from stages.transfer.recording import Body
        from stages.transfer.scoring import report

        source = context.model("model")
        probes = self._probes(context)
        body = Body(load_for_evaluation(source, self.params.dtype), head_shape(source))
        inquiries = self._inquire(context, body, probes)
        metrics, details = report(inquiries, body.shape, context.output("scores") / FIGURE, self.params.threshold)
        context.metrics(**metrics)
        known = {
            "model": {"digest": source.digest, "type": source.config["model_type"]},
            "figures": [FIGURE],
            "seed": context.seed,
            "parameters": self.params.identity(),
        }
        write_report(context.output("scores"), "Head scores", metrics, {**details, **known})

    def _probes(self, context: Context) -> dict[Capability, dict[str, Iterator[Pair]]]:
        """By capability and sub-probe, pairs without end. The first of each is made: what cannot be is told at once."""
        from stages.evaluate.needles_text import Haystack, Pieces, texts_of
        from stages.transfer.probing import Prober, Words

        params, model = self.params, context.model("model")
        pieces = Pieces(model)
        haystack = Haystack(texts_of(context.dataset("text")), pieces, max(HAYSTACK_TOKENS, 4 * params.length))
        prober = Prober(pieces, haystack, params.length)
        found: dict[Capability, dict[str, Iterator[Pair]]] = {}
        if "retrieval" in params.capabilities:
            found["retrieval"] = self._retrieval(prober, str(context.seed))
        if "general" in params.capabilities:
            words = Words(model, haystack.ids)
            found["general"] = {
                f"{reach} tokens": prober.general(words, reach, str(context.seed)) for reach in params.reaches
            }
        return {name: {probe: _begun(pairs) for probe, pairs in found[name].items()} for name in params.capabilities}

    def _retrieval(self, prober: Prober, seed: str) -> dict[str, Iterator[Pair]]:
        return {
            f"{task} at {depth:g}": prober.retrieval(task, depth, self.params.needles, seed)
            for task in self.params.tasks
            for depth in self.params.depths
        }

    def _inquire(
        self, context: Context, body: Body, probes: Mapping[Capability, Mapping[str, Iterator[Pair]]]
    ) -> dict[str, Inquiry]:
        from stages.transfer.bench import Bench
        from stages.transfer.survey import Inquiry, Survey

        params, found = self.params, {}
        bench = Bench(body, params.decay, params.require_correct, params.least_drop)
        pace = _Pace(context, sum(map(len, probes.values())) * params.pairs * (1 + params.rounds))
        for capability, of_capability in probes.items():
            surveys = {name: Survey(method, params.threshold) for name, method in self._methods(body).items()}
            found[capability] = inquiry = Inquiry(bench, surveys, pace.step)
            for probe, pairs in of_capability.items():
                inquiry.first_round(probe, pairs, params.pairs, params.pairs * params.attempts)
            self._require_pairs(capability, inquiry)
            for _ in range(params.rounds):
                inquiry.next_round()
            pace.reach(sum(len(probes[name]) for name in found) * params.pairs * (1 + params.rounds))
            context.say(_summary(capability, inquiry))
        return found

    def _methods(self, body: Body) -> dict[str, Effects]:
        """The method that scores first."""
        from stages.transfer.attribution import Attribution
        from stages.transfer.patching import Patching

        exact, attribution = Patching(body, self.params.batch_size), Attribution(body)
        found: dict[Method, dict[str, Effects]] = {
            "exact": {"exact": exact},
            "attribution": {"attribution": attribution},
            "both": {"exact": exact, "attribution": attribution},
        }
        return found[self.params.method]

    def _require_pairs(self, capability: str, inquiry: Inquiry) -> None:
        if not inquiry.used:
            raise UserError(
                f"the model passes none of {sum(inquiry.dropped.values())} pairs for {capability}: it answers wrongly, "
                f"or its answer changes by less than {self.params.least_drop:g} logits",
                where="model",
                fix="give a more capable model, easier probes (a shorter length, fewer needles), or leave this "
                "capability out",
            )


def _begun(pairs: Iterator[Pair]) -> Iterator[Pair]:
    return chain([next(pairs)], pairs)


class _Pace:
    """Progress in pairs times rounds; what dropped pairs leave out is made up at the end of a capability."""

    def __init__(self, context: Context, total: int) -> None:
        self._context, self._total, self._done = context, total, 0

    def step(self) -> None:
        self.reach(self._done + 1)

    def reach(self, done: int) -> None:
        self._done = done
        self._context.progress(done, self._total, "pairs")


def _summary(capability: str, inquiry: Inquiry) -> str:
    used, dropped = sum(map(len, inquiry.used.values())), sum(inquiry.dropped.values())
    empty = [probe for probe in inquiry.dropped if probe not in inquiry.used]
    without = f"; none passed of {', '.join(empty)}" if empty else ""
    return f"{capability}: {used} pairs count, {dropped} dropped{without}"
