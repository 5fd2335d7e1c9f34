"""`agent.clean`: trajectories become training data, as DR-Venus cleans them (arXiv 2604.19859)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator

from stages.artifacts import Dataset, Report, write_report
from stages.errors import UserError
from stages.stage import Context, Input, Output, Parameters, Stage

if TYPE_CHECKING:
    from stages.agent.trajectories.cleaning import Ledger


class CleanParameters(Parameters):
    """How trajectories are brought into form. The defaults of `resample` are those of DR-Venus."""

    tool_names: dict[str, str] = {}
    """Other names of tools, mapped to the environment's: `{browse: visit}`."""
    argument_names: dict[str, str] = {}
    """Other names of arguments, under the environment's name of the tool: `{visit.url: id}`."""
    resample: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]], ...] = ((50, 2), (100, 5))
    """[n, k]: a trajectory of more than n turns counts k times; of several that fit, that with the largest n."""

    @field_validator("tool_names", "argument_names")
    @classmethod
    def _once(cls, names: dict[str, str]) -> dict[str, str]:
        """A name that is given is not renamed again: cleaning twice would change it twice."""
        for old, new in names.items():
            again = f"{old.partition('.')[0]}.{new}" if "." in old else new
            if again in names and old != again:
                raise ValueError(f"{old} becomes {new}, which is renamed itself: name what it is to become in the end")
        return names

    def smoke(self) -> Self:
        """The same: cleaning takes no time."""
        return self


class AgentClean(Stage):
    """Align, clean, validate and resample trajectories; each one dropped is counted with its reason and a sample.

    In this order: roles, tools and arguments take the environment's names; calls of tools that it lacks, and calls made
    before, are taken out with what they gave; trajectories of another structure or with a wrong answer are dropped, and
    so are repetitions; what is left counts more often the more turns it has. Cleaning twice changes nothing. Without
    `index` the environment has no tools, and an answer is right that got the full reward.
    """

    Params = CleanParameters
    inputs: ClassVar[Mapping[str, Input]] = {
        "trajectories": Input(Dataset, schema="trajectories"),
        "index": Input(Dataset, schema="text", optional=True),
    }
    outputs: ClassVar[Mapping[str, Output]] = {
        "trajectories": Output(Dataset, schema="trajectories"),
        "report": Output(Report),
    }
    metrics = ("read", "kept", "dropped", "rows", "aligned", "removed_calls")
    paper = "2604.19859"
    params: CleanParameters

    def run(self, context: Context) -> None:
        """Clean, write, report."""
        from stages.agent.conversation.records import read_trajectories, write_trajectories
        from stages.agent.environment.research import make_tools
        from stages.agent.trajectories.cleaning import Rules, clean

        source, params = context.dataset("trajectories"), self.params
        tools = make_tools(context.dataset("index").path)[1] if context.inputs.get("index") else {}
        found = read_trajectories(source)
        rows, ledger = clean(found, Rules(tools, params.tool_names, params.argument_names, params.resample))
        if not rows:
            samples = "; ".join(f"{reason}, as {shown[0]!r}" for reason, shown in ledger.samples.items())
            raise UserError(
                f"none of {len(found)} trajectories is clean: {_summary(ledger)}; {samples or 'there are none'}",
                fix="name what differs in `tool_names` and `argument_names`, or give other trajectories",
            )
        card, kept = source.card, len(set(map(id, rows)))
        write_trajectories(context.output("trajectories"), rows, licence=card.licence, source=card.source)
        context.metrics(
            read=len(found),
            kept=kept,
            dropped=len(found) - kept,
            rows=len(rows),
            aligned=ledger.aligned,
            removed_calls=sum(ledger.calls.values()),
        )
        context.say(f"kept {kept} of {len(found)} trajectories: {_summary(ledger)}")
        details = {"parameters": params.identity(), "reasons": _reasons(ledger)}
        write_report(context.output("report"), "Cleaned trajectories", context.results, details)


def _summary(ledger: Ledger) -> str:
    return "; ".join(f"{count}: {reason}" for reason, count in ledger.trajectories.items()) or "nothing to take out"


def _reasons(ledger: Ledger) -> dict[str, Any]:
    return {
        reason: {"trajectories": count, "calls": ledger.calls[reason], "samples": ledger.samples[reason]}
        for reason, count in ledger.trajectories.items()
    }
