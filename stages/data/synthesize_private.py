"""`data.synthesize_private`: text like private text, with a bound on what it can tell of any one document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_room
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.data.private_accounting import History, Spent
    from stages.data.private_training import Plan

UNCOVERED = (
    "what the model knew before: if it was pretrained on the private documents, nothing is protected",
    "the number of private documents, the labels and the parameters of this stage, which count as public",
    "several documents of one person: the unit of privacy is one document",
    "an attacker who predicts the generator of the noise: it is seeded by the operating system, but not cryptographic",
)
"""What the bound does not cover; the report tells it."""


class SynthesizePrivateParameters(Parameters):
    """The budget, how to train within it, and what to write."""

    epsilon: Annotated[float, Field(gt=0)] | None = 8.0
    """The budget. `null`: no noise, and no privacy, to compare with; the report says so."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Chance that the bound does not hold; below one over the documents. A tenth of that without it."""
    steps: Annotated[int, Field(ge=1)] = 200
    """Updates. More steps ask for more noise."""
    batch_documents: Annotated[int, Field(ge=1)] = 64
    """Documents in an update on average: each is drawn by itself (Poisson sampling). Large batches do better."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a document's gradient; the noise is in proportion to it."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Of AdamW."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Of the LoRA that is trained: fewer parameters, less noise."""
    sequence_length: Annotated[int, Field(ge=4)] = 128
    """Tokens of a document at most, prompt included: longer ones are cut, and no longer ones are written."""
    prompt: str = ""
    """What stands before every document; `{label}` in it is replaced. Not learnt."""
    label_field: str | None = None
    """Column of the private data that holds a label for the prompt."""
    labels: tuple[str, ...] = ()
    """The labels to write for, in equal parts. To be named here: reading them off the data would tell of it."""
    documents: Annotated[int, Field(ge=1)] = 1000
    """Documents to write. Their number costs no privacy."""
    micro_batch: Annotated[int, Field(ge=1), EXECUTION] = 16
    """Documents in a forward pass."""

    @model_validator(mode="after")
    def _labels_and_prompt(self) -> Self:
        if (self.label_field is None) != (not self.labels) or ("{label}" in self.prompt) != bool(self.labels):
            raise ValueError("`label_field`, `labels` and a prompt with `{label}` come together, or not at all")
        return self

    def smoke(self) -> Self:
        """A few steps and documents."""
        few = {"steps": 3, "batch_documents": 8, "documents": 4, "sequence_length": 24, "rank": 2}
        return self.replaced(**{name: min(getattr(self, name), value) for name, value in few.items()})


class SynthesizePrivate(Stage):
    """Write text like private documents, such that each of them hardly changes what may be written (DP synthetic text).

    A LoRA of a public model is trained on the documents by DP-SGD (arXiv 1607.00133), one document being one unit of
    privacy, and text is sampled from it. The report tells epsilon and delta by two accountants. When they cannot run,
    or disagree, the stage fails and nothing is published. Runs again are not equal: noise that could be drawn again
    would be none. No figure of the private text is reported.
    """

    Params = SynthesizePrivateParameters
    inputs: ClassVar[Mapping[str, Input]] = {"model": Input(Model), "private": Input(Dataset, schema="text")}
    outputs: ClassVar[Mapping[str, Output]] = {"dataset": Output(Dataset, schema="text"), "report": Output(Report)}
    requires: ClassVar[Mapping[str, str]] = {"opacus": "private", "peft": "private"}
    metrics = ("private", "epsilon", "epsilon_rdp", "delta", "noise_multiplier", "documents", "bytes")
    paper = "2306.01684"
    params: SynthesizePrivateParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """A dense model with a tokenizer, windows that it reads, and a delta that means something."""
        model, data = inputs["model"], inputs["private"]
        require_room(model, self.params.sequence_length, "sequence_length")
        if model.grafts or "quantization_config" in model.config:
            raise UserError(
                "the model is converted or quantised", where="model", fix="give the model that it was made of"
            )
        count = data.card.num_rows
        if self.params.batch_documents > count:
            raise UserError(
                f"batch_documents: {self.params.batch_documents} of {count} private documents",
                where="private",
                fix=f"set batch_documents to {count} or less",
            )
        if self.params.epsilon is not None and self.delta(count) >= 1 / count:
            raise UserError(
                f"delta: {self.delta(count):.3g} is no less than one over the {count} private documents, which would "
                "allow to publish one of them",
                fix=f"set delta below {1 / count:.3g}, or leave it out",
            )

    def delta(self, count: int) -> float:
        """The delta that counts for `count` documents."""
        return self.params.delta or 0.1 / count

    def run(self, context: Context) -> None:
        """Settle the noise, train, account, and only then write."""
        from stages.data.private_writing import learn, write

        data, params = context.dataset("private"), self.params
        plan = self._plan(data.card.num_rows)
        learnt = learn(params, plan, context)
        spent = self._account(learnt.history, data.card.num_rows)
        written = write(learnt, params, context)
        figures = {"private": float(spent is not None), "noise_multiplier": plan.noise_multiplier, **written}
        if spent is None:
            context.say("epsilon: null. No noise was added: this text is not private")
        else:
            figures |= {"epsilon": spent.prv, "epsilon_rdp": spent.rdp, "delta": self.delta(data.card.num_rows)}
            context.say(f"epsilon {spent.prv:.3f} at delta {figures['delta']:.3g}, for adding or removing one document")
        context.metrics(**figures)
        self._report(context, learnt.history, figures)

    def _account(self, history: History, count: int) -> Spent | None:
        """What was spent; None when no privacy was asked for."""
        from stages.data.private_accounting import account

        if self.params.epsilon is None:
            return None
        return account(history, self.delta(count), self.params.epsilon)

    def _report(self, context: Context, history: History, figures: Mapping[str, float]) -> None:
        count = context.dataset("private").card.num_rows
        claim = "none: no noise was added"
        if figures["private"]:
            bound = f"({figures['epsilon']:.3f}, {figures['delta']:.3g})"
            claim = f"{bound}-differential privacy for adding or removing one document"
        details = {
            "privacy": claim,
            "unit": "one document",
            "not_covered": UNCOVERED if figures["private"] else (),
            "mechanism": "DP-SGD with Poisson sampling" if figures["private"] else "",
            "accountants": ["privacy random variables", "Renyi"] if figures["private"] else [],
            "private_documents": count,
            "steps": [{"noise_multiplier": noise, "sample_rate": rate, "steps": n} for noise, rate, n in history],
            "parameters": self.params.identity(),
        }
        write_report(context.output("report"), "Private synthetic text", figures, details)

    def _plan(self, count: int) -> Plan:
        from stages.data.private_accounting import noise_for, sampling_rate
        from stages.data.private_training import Plan

        params, rate = self.params, sampling_rate(count, self.params.batch_documents)
        noise = 0.0 if params.epsilon is None else noise_for(params.epsilon, self.delta(count), rate, params.steps)
        return Plan(
            learning_rate=params.learning_rate,
            clip=params.clip,
            noise_multiplier=noise,
            steps=params.steps,
            micro_batch=params.micro_batch,
            batch_documents=params.batch_documents,
        )
