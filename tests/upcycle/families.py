"""A seed, its branches and text, as the stages of upcycling get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from grafts.loader import load_model, save_model
from stages.artifacts import Dataset, Model
from stages.stage import Context, Resources, Stage
from tests.tiny import tiny_model, tokens_dataset


def branch(seed: Path, directory: Path, number: int) -> Path:
    """The seed with every weight moved a little."""
    model, draw = load_model(seed, dtype=torch.float32), torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.02)
    save_model(model, directory, tokenizer_from=seed)
    return directory


def family(root: Path) -> dict[str, Any]:
    """A seed, two branches, and text of two domains held out."""
    seed = tiny_model(root / "seed")
    experts = [Model(branch(seed, root / name, i + 1), name=f"branch[domain={name}]") for i, name in enumerate("ab")]
    domains = [
        Dataset(tokens_dataset(root / f"held-{i}", seed, num_windows=4, seed=i).path, name=f"corpus[domain={name}]")
        for i, name in enumerate("ab")
    ]
    return {"seed": Model(seed, name="seed"), "experts": experts, "heldout": domains[0], "domains": domains}


def run(stage: type[Stage], inputs: dict[str, Any], directory: Path, **params: Any) -> Context:
    """Check and run a stage; the events are in `context.events`."""
    made, events = stage(stage.Params(**params)), []
    made.preflight()
    made.check(inputs)
    context = Context(
        inputs, out=directory / "out", scratch=directory / "scratch", resources=Resources(), emit=events.append, seed=3
    )
    context.events = events  # type: ignore[attr-defined]
    made.run(context)
    return context


def curve(context: Context, name: str) -> list[float]:
    events = context.events  # type: ignore[attr-defined]
    return [event["values"][name] for event in events if event["event"] == "curve" and name in event["values"]]
