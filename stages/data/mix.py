"""`data.mix`: packed windows of several datasets in the proportions of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Self

from pydantic import Field

from stages.artifacts import Dataset, DatasetCard, Report, write_report
from stages.errors import UserError, listing
from stages.source.locate import nearest
from stages.stage import EXECUTION, Context, Input, Output, Parameters, Source, Stage

if TYPE_CHECKING:
    from stages.data.mixing import Mixture
    from stages.data.recipes import Recipe


RANKED: Final = "ranked"


class MixDataParams(Parameters):
    """Which datasets, in which proportions, and how much."""

    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    """What the recipe calls the datasets of `data`, in their order."""
    weights: dict[str, float] = {}
    """The weight of each dataset, in any unit; 0 leaves one out. Or give a `recipe`."""
    recipe: Annotated[str, EXECUTION] = ""
    """A YAML file with a `name` and `weights`, or the name of one that comes with regraft: it counts by its content. Or
    `ranked`: the weights of the mixture that input `ranking` puts first."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the mixture, in whole windows. Without it: as many as until a dataset runs out."""
    max_epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often a dataset may be gone through."""

    def smoke(self) -> Self:
        """A few windows, which may repeat."""
        return self.replaced(tokens=min(self.tokens or 512, 512), max_epochs=1000)


class MixData(Stage):
    """Interleave the windows of packed datasets so that each has its share of any stretch, not only of the whole.

    A dataset's windows come in an order drawn from the seed, another one in every epoch. After any number n of windows
    a dataset of share w has n·w of them up to 1 - 1/(2k - 2), with k datasets: off by less than 2 in any stretch.
    """

    Params = MixDataParams
    inputs: ClassVar[Mapping[str, Input]] = {
        "data": Input(Dataset, schema="tokens", many=True),
        "ranking": Input(Report, optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {"data": Output(Dataset, schema="tokens"), "report": Output(Report)}
    metrics = ("windows", "tokens", "largest_deviation", "largest_epochs", "share_*", "windows_*")
    params: MixDataParams

    def sources(self) -> Mapping[str, Source]:
        """The file of the recipe."""
        from stages.data.recipes import recipe_file

        recipe = self.params.recipe
        return {"recipe": recipe_file(recipe)} if recipe not in ("", RANKED) else {}

    def preflight(self) -> None:
        """Weights or a recipe, and it and the datasets name each other as far as it is known before the run."""
        params = self.params
        if bool(params.weights) == bool(params.recipe):
            raise UserError("weights or a recipe, one of the two", fix="write recipe: FILE.yaml or weights: {…}")
        if len(set(params.datasets)) < len(params.datasets):
            raise UserError(f"datasets: {list(params.datasets)} names one twice", fix="give every dataset its own name")
        if params.recipe != RANKED:
            self._recipe(None)

    def check(self, inputs: Mapping[str, Any]) -> None:
        """The datasets are those named, in one window length and tokenizer; a ranking names them too."""
        data: Sequence[Dataset] = inputs["data"]
        self._recipe(inputs.get("ranking"))
        _check_names([dataset.short_name for dataset in data], self.params.datasets)
        for name, dataset in zip(self.params.datasets, data, strict=True):
            for field, value in (("sequence_length", "windows"), ("tokenizer", "tokenizer")):
                first, own = getattr(data[0].card, field), getattr(dataset.card, field)
                if first != own:
                    raise UserError(
                        f"{self.params.datasets[0]} has {value} {first}, {name} has {own}",
                        where="data",
                        fix="prepare all datasets of a mixture with the same model and sequence_length",
                    )

    def run(self, context: Context) -> None:
        """Work out the sequence, then write its windows shard by shard; shards that are there already stay."""
        from stages.data.mixing import plan, write

        recipe = self._recipe(context.inputs.get("ranking"))
        if self.params.recipe == RANKED:
            context.say(f"the ranking puts {recipe.name} first")
        sizes = {name: data.card.num_rows for name, data in self._data(context).items() if recipe.weights[name]}
        length = context.inputs["data"][0].card.sequence_length
        windows = None if self.params.tokens is None else self.params.tokens // length
        if windows == 0:
            raise UserError(
                f"tokens: {self.params.tokens} is less than one window of {length}",
                fix=f"set tokens to {length} or more",
            )
        mixture = plan(recipe.weights, sizes, windows, self.params.max_epochs, context.seed)
        write(mixture, {name: self._data(context)[name] for name in mixture.names}, context)
        self._finish(context, recipe, mixture, length)

    def _recipe(self, ranking: Report | None) -> Recipe:
        from stages.data.recipes import Recipe, exact_weights, first_ranked, read_recipe, recipe_file

        params = self.params
        if params.recipe == RANKED:
            recipe = first_ranked(ranking)
        elif params.recipe:
            recipe = read_recipe(recipe_file(params.recipe))
        else:
            recipe = Recipe("weights", exact_weights(params.weights, "weights"))
        for name in recipe.weights:
            if name not in params.datasets:
                raise UserError(
                    f"recipe {recipe.name} has a weight for {name!r}{nearest(name, params.datasets)}",
                    fix=f"datasets: {listing(list(params.datasets))}",
                )
        for name in params.datasets:
            if name not in recipe.weights:
                raise UserError(f"recipe {recipe.name} has no weight for {name!r}", fix="0 leaves a dataset out")
        return recipe

    def _data(self, context: Context) -> dict[str, Dataset]:
        return dict(zip(self.params.datasets, context.inputs["data"], strict=True))

    def _finish(self, context: Context, recipe: Recipe, mixture: Mixture, length: int) -> None:
        data, rows = self._data(context), mixture.table()
        cards = {name: data[name].card for name in mixture.names}
        shares = dict(zip(mixture.names, mixture.shares, strict=True))
        DatasetCard(
            schema="tokens",
            num_rows=len(mixture.picks),
            num_bytes=sum(
                round(cards[row["dataset"]].num_bytes * Fraction(row["windows"], row["available"])) for row in rows
            ),
            num_tokens=len(mixture.picks) * length,
            sequence_length=length,
            tokenizer=next(iter(cards.values())).tokenizer,
            licence=", ".join(sorted({card.licence for card in cards.values() if card.licence})),
            source=f"{recipe.name}: {', '.join(mixture.names)}",
            mixture={name: str(shares.get(name, 0)) for name in recipe.weights},
        ).write(context.output("data"))
        context.metrics(
            windows=len(mixture.picks),
            tokens=len(mixture.picks) * length,
            largest_deviation=max(row["largest_deviation"] for row in rows),
            largest_epochs=max(row["epochs"] for row in rows),
            **{f"share_{row['dataset']}": row["windows"] / len(mixture.picks) for row in rows},
            **{f"windows_{row['dataset']}": row["windows"] for row in rows},
        )
        details = {"recipe": recipe.name, "description": recipe.description, "datasets": rows, **self.params.identity()}
        write_report(context.output("report"), "Mixture", context.results, details)


def _check_names(stages: Sequence[str], names: Sequence[str]) -> None:
    if len(stages) != len(names):
        raise UserError(
            f"datasets: {len(names)} names for {len(stages)} datasets: {listing(list(stages))}",
            where="data",
            fix="name each dataset of `data` once, in their order",
        )
    for stage, name in zip(stages, names, strict=True):
        if stage != name and stage in names:
            raise UserError(
                f"the dataset that comes from {stage!r} is called {name!r}, and {stage!r} is another one's name",
                where="data",
                fix=f"put datasets in the order of the inputs: {listing(list(stages))}",
            )
