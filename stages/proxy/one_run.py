"""Training one proxy inside a stage, and what it comes to as a `Trained`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stages.artifacts import Dataset
from stages.proxy.record import Domain, Trained, canonical
from stages.training.settings import TrainingParameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stages.proxy.settings import ProxyParameters, ProxyTrainParameters
    from stages.stage import Context

STANDARD_REDUCTION: Final = 30.0
"""Where nothing says otherwise: the middle of the paper's one to two orders of magnitude."""
APART: Final = ("learning_rate", "reduction", "tokens", "batch_sequences", "evaluations")
"""Parameters that `Trained` has in fields of their own, or that change no loss."""


@dataclass(frozen=True)
class Plan:
    """How one proxy is trained: everything settled."""

    standard_rate: float
    reduction: float
    batch_sequences: int

    @property
    def learning_rate(self) -> float:
        """The peak that it trains with."""
        return self.standard_rate / self.reduction


def plan_of(params: ProxyTrainParameters, optimum: Mapping[str, float], sequence_length: int) -> Plan:
    """What `params` say, but the learning rate, reduction and batch of `optimum` where that report tells them.

    The batch is told in tokens: who told it may count windows of another length than `sequence_length`.
    """
    batch_tokens = optimum.get("batch_tokens", params.batch_sequences * sequence_length)
    return Plan(
        standard_rate=optimum.get("learning_rate", params.learning_rate),
        reduction=params.reduction or optimum.get("reduction", STANDARD_REDUCTION),
        batch_sequences=max(1, round(batch_tokens / sequence_length)),
    )


@dataclass(frozen=True)
class Finished:
    """A trained proxy, and what its training cost."""

    trained: Trained
    loss: float
    """Training loss of the last step, nats a token."""
    all_parameters: int
    cost: dict[str, float]

    def figures(self) -> dict[str, float]:
        """The final figures of a stage that trained it."""
        proxy = self.trained
        by_domain = {f"validation_{slug(domain.name)}": domain.final for domain in proxy.domains}
        return {
            "loss": proxy.final,
            "training_loss": self.loss,
            "initial_loss": proxy.initial,
            "fall": 1 - proxy.final / proxy.initial,
            **by_domain,
            "learning_rate": proxy.learning_rate,
            "batch_sequences": proxy.batch_sequences,
            "epochs": proxy.epochs,
            "parameters": self.all_parameters,
            "non_embedding_parameters": proxy.parameters,
        }


def train_proxy(
    params: ProxyParameters, plan: Plan, context: Context, evaluations: int, cache: Path, out: Path | None = None
) -> Finished:
    """Train a proxy on input `data` of `context` and measure it on `validation`, resuming from its scratch.

    `cache` is for the decoded windows, which the proxies of one stage share.
    """
    from stages.proxy.training import ProxyTraining
    from stages.training.launch import run_training

    data, validation = context.dataset("data"), _once(context)
    step_tokens = plan.batch_sequences * data.card.sequence_length
    num_steps = math.ceil(params.tokens / step_tokens)
    recipe = ProxyTraining(
        params=params,
        model=context.model("model"),
        data=data,
        validation=validation,
        seed=context.seed,
        cache=cache,
        num_steps=num_steps,
        results=context.scratch / "evaluations.json",
        out=out,
    )
    result = run_training(recipe, _training(params, plan, max(1, num_steps // evaluations)), context)
    curve, figures = recipe.curve(), result.figures
    curve[num_steps] = [figures[f"final_{number}"] for number in range(len(validation))]
    initial = [figures[f"initial_{number}"] for number in range(len(validation))]
    trained = Trained(
        recipe=data.short_name or "data",
        digest=digest_of(data),
        learning_rate=plan.learning_rate,
        reduction=plan.reduction,
        batch_sequences=plan.batch_sequences,
        tokens=params.tokens,
        steps=num_steps,
        seed=context.seed,
        parameters=int(figures["non_embedding_parameters"]),
        epochs=num_steps * plan.batch_sequences / data.card.num_rows,
        setting=_setting(params, context),
        domains=_domains(validation, initial, curve),
        mixture=data.card.mixture,
    )
    return Finished(trained, figures["loss"], int(figures["parameters"]), result.cost)


def _training(params: ProxyParameters, plan: Plan, evaluate_every: int) -> TrainingParameters:
    """What the training loop is told: plain parameters, since those of a proxy refuse `evaluate_every`."""
    told = params.model_dump(include=set(TrainingParameters.model_fields))
    told |= {"learning_rate": plan.learning_rate, "batch_sequences": plan.batch_sequences}
    return TrainingParameters(**{**told, "evaluate_every": evaluate_every})


def trained_details(trained: Trained) -> dict[str, Any]:
    """`trained` as the details of a report have it."""
    return asdict(trained)


def domain_names(validation: Sequence[Dataset]) -> list[str]:
    """What people call the held-out datasets: the arm of a matrix by its values, else the stage; numbered if alike."""
    names = [each.short_name or "text" for each in validation]
    return [name if names.count(name) == 1 else f"{name} {index}" for index, name in enumerate(names)]


def digest_of(data: Dataset) -> str:
    """What tells datasets apart: their content; for one that is not published, its place."""
    return data.digest or str(data.path)


def slug(name: str) -> str:
    """`name` as part of a metric's name."""
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in name)


def _once(context: Context) -> list[Dataset]:
    """The held-out datasets, each content once: a domain that is there twice would count twice in the mean."""
    unique: dict[str, Dataset] = {}
    for each in context.inputs["validation"]:
        first = unique.get(digest_of(each))
        if first is not None:
            context.say(f"held-out {each.name or 'text'} holds the same as {first.name or 'text'}: it counts once")
        unique.setdefault(digest_of(each), each)
    return list(unique.values())


def _domains(
    validation: Sequence[Dataset], initial: Sequence[float], curve: Mapping[int, Sequence[float]]
) -> tuple[Domain, ...]:
    last = max(curve)
    return tuple(
        Domain(
            name=name,
            digest=digest_of(each),
            initial=initial[number],
            final=curve[last][number],
            curve=tuple((step, curve[step][number]) for step in sorted(curve)),
        )
        for number, (name, each) in enumerate(zip(domain_names(validation), validation, strict=True))
    )


def _setting(params: ProxyParameters, context: Context) -> str:
    rest = {name: value for name, value in params.identity().items() if name not in APART}
    shape = {"num_layers", "hidden_size", "num_heads", "intermediate_size", "tie_embeddings"}
    if params.start == "model":
        rest = {name: value for name, value in rest.items() if name not in shape}
    model = context.model("model")
    start = model.digest or str(model.path) if params.start == "model" else model.tokenizer_fingerprint
    return canonical({**rest, "start": start, "sequence_length": context.dataset("data").card.sequence_length})
