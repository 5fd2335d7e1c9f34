"""Proxies for tests: reports written by hand, and stages run on tiny data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.artifacts import Report, write_report
from stages.proxy.record import Domain, Trained
from stages.stage import Context, Resources, Stage


def trained(
    recipe: str, final: float | Sequence[float], *, seed: int = 0, initial: float = 6.0, **more: Any
) -> Trained:
    """A proxy of `recipe` with these final losses, one a domain."""
    finals = [final] if isinstance(final, float) else list(final)
    domains = tuple(
        Domain(f"domain {number}", f"held-{number}", initial, loss, ((5, (initial + loss) / 2), (10, loss)))
        for number, loss in enumerate(finals)
    )
    plan = {
        "learning_rate": 1e-4,
        "reduction": 30.0,
        "batch_sequences": 8,
        "tokens": 1000,
        "steps": 10,
        "parameters": 1000,
        "epochs": 0.5,
        "setting": '{"sequence_length":32}',
    }
    return Trained(recipe=recipe, digest=f"digest of {recipe}", seed=seed, domains=domains, **{**plan, **more})


def written(directory: Path, proxy: Trained, number: int = 0) -> Report:
    """`proxy` as the report of its training."""
    path = directory / f"{proxy.recipe}-{proxy.learning_rate}-{proxy.seed}-{number}"
    write_report(path, "Training of a proxy", {}, {"proxy": asdict(proxy)})
    return Report(path, name=f"proxy[recipe={proxy.recipe}]")


def reports(directory: Path, proxies: Sequence[Trained]) -> list[Report]:
    return [written(directory, proxy, number) for number, proxy in enumerate(proxies)]


def run(stage: type[Stage], inputs: Mapping[str, Any], directory: Path, *, seed: int = 0, **params: Any) -> Context:
    """Check and run a stage; the events are in `context.events`."""
    made, events = stage(stage.Params(**params)), []
    made.preflight()
    made.check(inputs)
    context = Context(
        inputs,
        out=directory / "out",
        scratch=directory / "scratch",
        resources=Resources(),
        emit=events.append,
        seed=seed,
    )
    context.events = events  # type: ignore[attr-defined]
    made.run(context)
    return context


def said(context: Context) -> str:
    events = context.events  # type: ignore[attr-defined]
    return "\n".join(event["text"] for event in events if event["event"] == "message")


def details(context: Context, output: str = "report") -> dict[str, Any]:
    return Report(context.output(output)).content["details"]
