"""Recipes: weights over datasets, as small YAML files with a name.

    name: encyclopedic
    description: Mostly Wikipedia
    weights: {encyclopedia: 0.6, news: 0.3, law: 0.1}

Weights are in any unit; only their proportions count, and they count exactly as written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import yaml

from stages.artifacts import Report
from stages.errors import UserError, listing
from stages.source.locate import nearest

SHIPPED: Final = Path(__file__).parent / "recipes"
KEYS: Final = ("name", "description", "weights")


@dataclass(frozen=True)
class Recipe:
    """A named mixture: the weight of each dataset by name, at least one of them above 0."""

    name: str
    weights: Mapping[str, Fraction]
    description: str = ""


def recipe_file(recipe: str) -> Path:
    """The file of a recipe: a path to a YAML file, or the name of one that comes along. Raises UserError."""
    if recipe.endswith((".yaml", ".yml")):
        file = Path(recipe).expanduser().absolute()
        if not file.is_file():
            raise UserError(f"recipe: there is no file {file}", fix="check the path")
        return file
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    if recipe not in shipped:
        raise UserError(
            f"recipe: {recipe!r} is unknown{nearest(recipe, shipped)}",
            fix=f"write the path of a .yaml file, or one of {listing(shipped)}",
        )
    return SHIPPED / f"{recipe}.yaml"


def read_recipe(file: Path) -> Recipe:
    """The recipe in `file`. Raises UserError that names the file and what is wrong in it."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {error}", fix="a recipe has name, description and weights") from None
    if not isinstance(content, dict) or not isinstance(content.get("weights"), dict):
        raise UserError(f"{file} has no weights", fix="write weights: {DATASET: NUMBER, …}")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: unknown key {key!r}{nearest(str(key), KEYS)}", fix=f"keys: {', '.join(KEYS)}")
    weights = exact_weights(content["weights"], str(file))
    return Recipe(str(content.get("name", file.stem)), weights, str(content.get("description", "")))


def first_ranked(ranking: Report | None) -> Recipe:
    """The mixture that a report of `proxy.rank` puts first, by the lowest loss also where others are tied with it.

    Raises UserError without a report, for one of another stage, and where what comes first is no mixture.
    """
    if ranking is None:
        raise UserError("recipe: ranked needs the input ranking", fix="give the report of `proxy.rank` as `ranking`")
    best = ranking.detail("best", "ranks no recipes", where="ranking", fix="give the report of `proxy.rank`")
    if not best["mixture"]:
        raise UserError(
            f"what the ranking puts first, {best['recipe']}, is not a mixture of `data.mix`: it has no weights to take",
            where="ranking",
            fix="rank proxies of mixtures, or name the recipe that is to be used",
        )
    weights = {name: Fraction(weight) for name, weight in best["mixture"].items()}
    return Recipe(best["recipe"], weights, "First in the ranking of proxies")


def exact_weights(weights: Mapping[Any, Any], where: str) -> dict[str, Fraction]:
    """The weights as the fractions that were written: 0.1 is one tenth. Raises UserError for what is no weight."""
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UserError(f"{where}: the weight of {name!r} is {weight!r}", fix="a weight is a number, 0 or more")
    if not any(weights.values()):
        raise UserError(f"{where}: no weight is above 0", fix="give the datasets to mix weights")
    return {str(name): Fraction(str(weight)) for name, weight in weights.items()}
