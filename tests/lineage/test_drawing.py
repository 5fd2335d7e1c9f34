"""The picture: valid XML, the same every time, without overlaps."""

from __future__ import annotations

import random
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from pipelines.lineage.drawing import HEIGHT, PAINT, Node, Status, draw, label, shorten
from pipelines.lineage.layout import arrange

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [found.text or "" for found in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_state_is_drawn() -> None:
    nodes = [Node(state, "some.method") for state in PAINT]
    svg = draw(nodes, {state: Status(state, 61.0) for state in PAINT})
    assert set(PAINT) <= set(texts(svg))
    assert "some.method · 1m 01s" in texts(svg)
    assert "some.method · cached" in texts(svg)


def test_text_is_escaped_and_long_names_are_cut() -> None:
    name = "train[<recipe>=\"a&b\",\x00learning_rate='1e-5']" * 3
    svg = draw([Node(name, "x<y>&z")], {})
    assert ElementTree.fromstring(svg).find(f"{SVG}g/{SVG}title") is not None
    assert all(len(text) < 40 for text in texts(svg))
    assert "…" in texts(svg)[0]
    assert "\x00" not in svg


def test_the_same_graph_gives_the_same_picture() -> None:
    nodes = [Node("a", "m"), Node("b", "m", ("a",)), Node("c", "m", ("a", "b")), Node("d", "m", ("a", "gone"))]
    assert draw(nodes, {}) == draw(list(nodes), {})


def test_an_empty_graph_is_a_picture_too() -> None:
    assert texts(draw([], {})) == []


def random_graph(num_nodes: int) -> dict[str, list[str]]:
    rng = random.Random(num_nodes)
    names = [f"n{number}" for number in range(num_nodes)]
    return {name: rng.sample(names[:at], min(at, rng.randint(0, 3))) for at, name in enumerate(names)}


@pytest.mark.parametrize("num_nodes", [1, 8, 60, 300])
def test_boxes_do_not_overlap_and_edges_run_forward(num_nodes: int) -> None:
    graph = random_graph(num_nodes)
    layout = arrange(graph, HEIGHT)
    columns: dict[int, list[float]] = {}
    for layer, centre in layout.place.values():
        columns.setdefault(layer, []).append(centre)
    for column in columns.values():
        assert all(below - above >= HEIGHT for above, below in pairwise(sorted(column)))
    assert all(layout.place[parent][0] < layout.place[name][0] for name in graph for parent in graph[name])
    assert all(0 <= centre <= layout.height for _, centre in layout.place.values())
    ElementTree.fromstring(draw([Node(name, "m", tuple(up)) for name, up in graph.items()], {}))


def test_a_chain_is_one_row_high() -> None:
    graph = {f"n{number}": [f"n{number - 1}"] if number else [] for number in range(9)}
    assert arrange(graph, HEIGHT).height == HEIGHT


def test_names_are_cut_in_the_middle() -> None:
    assert shorten("train[recipe=a,lr=1e-5]", 12) == "train[…1e-5]"


def test_an_arm_is_called_by_its_values() -> None:
    assert label("learn[credit=grpo,seed=0]") == "learn[grpo, 0]"
    assert label("learn") == "learn"
    (name, _) = texts(draw([Node("learn[credit=grpo,seed=0]", "agent.rl")], {}))
    assert name == "learn[grpo, 0]"


def test_edges_of_a_node_run_together_until_they_part() -> None:
    chain = {f"n{number}": [f"n{number - 1}"] if number else [] for number in range(4)}
    graph = chain | {f"reader{number}": ["n0", "n3"] for number in range(3)}
    layout = arrange(graph, HEIGHT)
    between = {tuple(layout.routes["n0", f"reader{number}"][1:-1]) for number in range(3)}
    assert len(between) == 1
    assert [layer for layer, _ in between.pop()] == [1, 2, 3]
