"""What the stages that make a mixture have in common: check, build tensor by tensor, prove or measure, report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from stages.artifacts import Dataset, Model, Report, write_report
from stages.errors import UserError
from stages.evaluate.matching import require_given_tokens
from stages.evaluate.measured import DISTANCE
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Stage
from stages.upcycle.matching import check_alike, check_source, expert_names

if TYPE_CHECKING:
    from grafts.experts.graft import Experts
    from grafts.experts.settings import Making
    from grafts.experts.stream import Built

CONVERTED: Final = (
    "experts",
    "parameters",
    "active_parameters",
    "parameters_ratio",
    "cache_ratio",
    "max_logit_difference",
    *DISTANCE,
)


class UpcycleParameters(Parameters):
    """How tokens are routed, and how the result is measured."""

    top_k: Annotated[int, Field(ge=1)] = 2
    """Experts that a token goes through."""
    renormalise: bool = True
    """Gates of a token sum to 1, so that equal experts are the dense model; off, they are the raw probabilities. With
    `top_k: 1` only raw gates let the loss of the text reach the router."""
    split: Annotated[int, Field(ge=1)] = 1
    """Equal shares that each expert is cut into and routed by, with `split` times the weight (arXiv 2410.07524)."""
    capacity: Annotated[float, Field(gt=0)] | None = None
    """Room of an expert while training, in multiples of an even share; tokens beyond it are dropped. Null: none is."""
    router_std: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Standard deviation of the routers' weights, which are drawn at random."""
    heldout_windows: Annotated[int, Field(ge=1)] = 32
    """Windows of `heldout` on which the distance to the seed is measured."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 4
    """Windows in a forward pass."""

    def smoke(self) -> Self:
        """A few windows."""
        return self.replaced(heldout_windows=min(self.heldout_windows, 2))


class CopiesParameters(UpcycleParameters):
    """A mixture of copies of one model."""

    num_experts: Annotated[int, Field(ge=2)] = 8
    """Experts in each layer."""

    @model_validator(mode="after")
    def _enough(self) -> CopiesParameters:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k: {self.top_k} exceeds num_experts: {self.num_experts}; lower it")
        return self


class ModelsParameters(UpcycleParameters):
    """A mixture of several models."""

    seed_is_expert: bool = True
    """Whether the seed gives an expert as well, the first."""


class Upcycle(Stage):
    """Makes a mixture of experts; subclasses say of what."""

    outputs: ClassVar[Mapping[str, Output]] = {"model": Output(Model), "report": Output(Report)}
    isolated = True
    metrics = CONVERTED
    params: UpcycleParameters

    @abstractmethod
    def models(self, inputs: Mapping[str, Any]) -> dict[str, Model]:
        """The models by role, the seed first."""

    @abstractmethod
    def num_experts(self, num_models: int) -> int:
        """Experts that `num_models` models give."""

    @abstractmethod
    def making(self, seed: int) -> Making:
        """How the experts' tensors are made of the models'."""

    def structure(self) -> dict[str, Any]:
        """How the experts are joined: fields of the graft."""
        params = self.params
        return {
            "top_k": params.top_k,
            "renormalise": params.renormalise,
            "split": params.split,
            "capacity": params.capacity,
        }

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Dense models of one architecture, tokenizer and chat template; data in their tokens."""
        models = self.models(inputs)
        for role, model in models.items():
            check_source(role, model)
        check_alike(models)
        require_given_tokens(next(iter(models.values())), inputs, ("heldout",), role="seed")

    def run(self, context: Context) -> None:
        """Build, then prove exactness where it is due, and measure the distance to the seed where there is text."""
        from grafts.experts.stream import build_mixture

        models, out = self.models(context.inputs), context.output("model")
        graft = self._graft(len(models), context.seed)
        try:
            sources = [model.path for model in models.values()]
            built = build_mixture(sources, graft, out, progress=context.progress)
        except ValueError as error:
            raise UserError(str(error), fix="see docs/methods/upcycle.md for what can be upcycled") from error
        context.say(f"{graft.num_experts * graft.split} experts a layer, saved as {built.class_name}")
        seed = next(iter(models.values()))
        figures = _sizes(graft, built, seed) | self._measure(context, seed, graft.is_exact(len(models)))
        context.metrics(**figures)
        names = expert_names(models)
        details = {
            "class": built.class_name,
            "experts": [names[giver] for giver in built.giver],
            "graft": graft.to_dict(),
            "parameters": self.params.identity(),
        }
        write_report(context.output("report"), "Conversion to experts", figures, details)

    def _graft(self, num_models: int, seed: int) -> Experts:
        from grafts.experts.graft import Experts

        return Experts(num_experts=self.num_experts(num_models), making=self.making(seed), **self.structure())

    def _measure(self, context: Context, seed: Model, is_exact: bool) -> dict[str, float]:
        """Nothing without held-out text unless the conversion must be exact: then both models are loaded anyway."""
        heldout = context.inputs.get("heldout")
        if heldout is None and not is_exact:
            return {}
        from stages.evaluate.distance import distance
        from stages.training.windows import input_windows
        from stages.upcycle.preservation import Pair, probe

        pair = Pair.load(seed, Model(context.output("model")), in_float32=is_exact)
        windows = input_windows(context, "heldout", self.params.heldout_windows) if heldout else None
        found: dict[str, float] = {}
        if is_exact:
            found["max_logit_difference"] = pair.require_equal(probe(seed) if windows is None else windows[:1])
        if windows is not None:
            size = self.params.batch_size
            found |= distance(pair.parent, pair.child, windows, batch_size=size, progress=context.progress).metrics()
        return found


class UpcycleCopies(Upcycle):
    """Makes a mixture of copies of one model."""

    inputs: ClassVar[Mapping[str, Input]] = {
        "model": Input(Model),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    params: CopiesParameters

    def models(self, inputs: Mapping[str, Any]) -> dict[str, Model]:
        """The one model."""
        return {"model": inputs["model"]}

    def num_experts(self, num_models: int) -> int:  # noqa: ARG002
        """As many as asked for."""
        return self.params.num_experts


class UpcycleModels(Upcycle):
    """Makes a mixture of models branched from one seed."""

    inputs: ClassVar[Mapping[str, Input]] = {
        "seed": Input(Model),
        "experts": Input(Model, many=True),
        "heldout": Input(Dataset, schema="tokens", optional=True),
    }
    params: ModelsParameters

    def check(self, inputs: Mapping[str, Any]) -> None:
        """As for any mixture, and the models give enough experts."""
        super().check(inputs)
        count, top_k = self.num_experts(len(self.models(inputs))), self.params.top_k
        if count < 2:
            raise UserError(
                f"the models give {count} expert{'' if self.params.seed_is_expert else ' besides the seed'}, a mixture "
                "has at least 2",
                where="experts",
                fix="give more models" + ("" if self.params.seed_is_expert else ", or set seed_is_expert: true"),
            )
        if top_k > count:
            raise UserError(
                f"the models give {count} experts, a token cannot go through {top_k}",
                where="top_k",
                fix=f"set top_k: {count} or less, or give more models",
            )

    def models(self, inputs: Mapping[str, Any]) -> dict[str, Model]:
        """The seed and the experts."""
        experts = {f"experts[{number}]": model for number, model in enumerate(inputs["experts"])}
        return {"seed": inputs["seed"], **experts}

    def num_experts(self, num_models: int) -> int:
        """One of each model that gives one."""
        return num_models if self.params.seed_is_expert else num_models - 1


def _sizes(graft: Experts, built: Built, seed: Model) -> dict[str, float]:
    from stages.source.checkpoint import count

    return {
        "experts": graft.num_experts * graft.split,
        "parameters": built.num_parameters,
        "active_parameters": built.num_active,
        "parameters_ratio": built.num_parameters / count(seed.path).num_parameters,
        "cache_ratio": graft.num_experts if graft.attention == "kv-expert" else 1,
    }
