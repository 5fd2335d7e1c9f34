"""A small library to write reports from: documents that name each other, topics over them, and an expert's work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stages.agent.environment.toolbox import Toolbox
from stages.agent.report.actions import Action
from stages.agent.report.episode import ReportEnvironment
from stages.agent.report.expert import Work, work
from stages.agent.report.expert_stage import AgentReportExpert
from stages.agent.report.state import Evidence, Limits, State, advanced
from stages.agent.report.topics import Item, Topic
from stages.agent.report.topics_stage import AgentReportTopics
from stages.agent.report.worlds import open_reports
from stages.artifacts import Dataset
from tests.agent.world import make_index, run

BOOKS = (
    "Rye bread -- Rye bread is made in Norrland from flour of rye grain. It keeps for weeks and is denser than others.",
    "Crispbread -- Crispbread is flat rye bread from Dalarna. It was baked twice a year and hung under the roof.",
    "Pumpernickel -- Pumpernickel is heavy rye bread of Westphalia. It is baked for a whole day in a closed oven.",
    "Crispbread press -- The press that rolls crispbread was built in Falun in 1850. It has two wooden rollers.",
    "Knotted rolling pin -- A pin with knots makes the holes of crispbread. Carvers in Mora sold it at fairs.",
    "Westphalian oven -- The closed oven for pumpernickel was heated in Soest since 1570. Its door is of clay.",
    "Steam baking -- Steam darkens pumpernickel slowly. The chemist Louis Maillard described why in 1912.",
    "Lighthouse -- A lighthouse warns ships at Eddystone and on other rocks. Its lamp turns all night long.",
    "Fresnel lens -- The lens of Augustin Fresnel throws the light of a lighthouse far. It is made of rings of glass.",
    "Lamp oil -- Oil from whales of Nantucket burnt in every lighthouse before kerosene. It smoked in the cold.",
    "Lens grinder -- Grinders in Saint-Gobain made each Fresnel lens by hand. A large one took them two years.",
    "Lens carriage -- The carriage turns a Fresnel lens on mercury. The Swede Gustaf Dalén improved it in 1906.",
    "Whaler -- A whaler hunted for lamp oil in the Pacific. Crews from Mystic were away for four years.",
    "Oil merchant -- A merchant of Bristol sold lamp oil by the barrel. The price doubled in 1848 within a month.",
    "Silk -- Silk is the thread of a moth, and was woven in Suzhou first. A single thread is very long.",
    "Silkworm -- The silkworm spins silk around itself. Farmers near Lyon fed it in warm rooms until May.",
    "Silk loom -- The loom for silk was ruled by punched cards of Joseph Jacquard. Weavers feared for their work.",
    "Mulberry -- The silkworm eats mulberry leaves alone. Trees were planted along the roads of Ardèche.",
    "Cocoon -- A cocoon of the silkworm is boiled before it is reeled. Women in Como did that with bare hands.",
    "Punched card -- The silk loom reads punched cards in a chain. Charles Babbage took the idea from there in 1836.",
    "Canut -- A canut worked the silk loom at home. In 1831 the canuts of Croix-Rousse rose against the merchants.",
)
SMALL = {"aspects": 2, "deeper": 2, "heldout_fraction": 0.34, "fewest_words": 8}


def open_library(directory: Path, **params: Any) -> dict[str, Dataset]:
    """The index, and topics over it: `train` and `heldout`."""
    index = make_index(directory, BOOKS)
    run(AgentReportTopics, {"index": index}, directory, **{**SMALL, **params})
    return {"index": index, **{side: Dataset(directory / "out" / side) for side in ("train", "heldout")}}


def schooling(library: dict[str, Dataset], directory: Path, **params: Any) -> dict[str, Dataset]:
    """The expert's `steps` and `exercises`."""
    run(AgentReportExpert, {"index": library["index"], "topics": library["train"]}, directory, **params)
    return {name: Dataset(directory / "out" / name) for name in ("steps", "exercises")}


def at_work(library: dict[str, Dataset], margin: float = 0.0) -> tuple[ReportEnvironment, list[Work]]:
    """The environment of the training topics, and the expert's work in it."""
    environment = open_reports(library["index"], library["train"])
    with Toolbox(environment.tools) as tools:
        return environment, work(environment, tools, margin, lambda *_: None)


OVEN = Evidence(6, "Westphalian oven", "The closed oven was heated in Soest since 1570.")
STEAM = Evidence(7, "Steam baking", "Steam darkens it slowly. Louis Maillard described why in 1912.")
OTHER = Evidence(9, "Fresnel lens", "The lens of Augustin Fresnel.")
TOPIC = Topic(
    "report-1",
    "Rye bread and Pumpernickel",
    (
        Item(1, "Rye bread", ("norrland", "flour"), 2.0),
        Item(3, "Pumpernickel", ("westphalia",), 2.0),
        Item(6, "Westphalian oven", ("soest", "1570"), 1.0, 3),
        Item(7, "Steam baking", ("louis maillard",), 1.0, 3),
    ),
)


def after(*taken: Any, limits: Limits | None = None) -> State:
    """The state after actions; a search is given as (action, evidence)."""
    return replayed(TOPIC.query, (one if isinstance(one, tuple) else (one, ()) for one in taken), limits or Limits())


def replayed(query: str, taken: Iterable[tuple[Action, Sequence[Evidence]]], limits: Limits) -> State:
    """The report that actions and findings make. Raises ActionError at the first that is not possible."""
    state = State(query)
    for action, found in taken:
        state = advanced(state, action, limits, found)
    return state
