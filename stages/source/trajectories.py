"""`source.trajectories`: bring conversations of one's own into the pipeline, as a `trajectories` dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self

from stages.artifacts import Dataset, Report, write_report
from stages.errors import UserError
from stages.source.files import kind_of
from stages.source.generated import GENERATED_TRAJECTORIES, generated_trajectories
from stages.source.locate import HubReference
from stages.source.origin import BadRows, Origin, OriginParameters, ReadsOrigin
from stages.stage import EXECUTION, Context, Output

if TYPE_CHECKING:
    from stages.agent.conversation.messages import Trajectory
    from stages.source.records import Record

KINDS: Final = (".jsonl", ".json", ".parquet")
"""Files whose records can hold a list of messages."""


class SourceTrajectoriesParams(OriginParameters):
    """Which conversations, and where in a record they are."""

    dataset: Annotated[str, EXECUTION]
    """`package:NAME/path/in/it` (a file shipped in an installed package), `hub:ORG/NAME@REVISION` (a commit or a tag),
    a local file, directory or glob, which count by their content, a URL such as `s3://BUCKET/chats/*.jsonl`, whose
    files count by their ETag or what else their storage tells of a version, or `generated:trajectories`, to try a
    pipeline with. .jsonl and .json files, which may be compressed as .jsonl.gz, and .parquet files hold a conversation
    a record."""
    messages_field: str = "messages"
    """Field or column that holds the messages: a list of {role, content}, with the roles system, user, assistant and
    tool. A record may also have a `reward` from 0 to 1 (1 without it), `answers` that count as right (a text or a list
    of texts), a `question` (the user's first message without it) and a `kind`, by which figures are told apart."""

    def smoke(self) -> Self:
        """Generated conversations."""
        return self.replaced(
            dataset=GENERATED_TRAJECTORIES, messages_field="messages", config=None, split=None, limit=None
        )


class SourceTrajectories(ReadsOrigin):
    """Read conversations from a package, a hub, local files or a bucket into a `trajectories` dataset, in their order.

    Nothing of what they say is changed: give them to `agent.clean`, which says what an agent's turn is, or as they are
    to `agent.sft`.
    """

    Params = SourceTrajectoriesParams
    outputs: ClassVar[Mapping[str, Output]] = {
        "trajectories": Output(Dataset, schema="trajectories"),
        "report": Output(Report),
    }
    metrics = ("trajectories", "messages", "trajectories_read", "bad_rows")
    generated = GENERATED_TRAJECTORIES
    params: SourceTrajectoriesParams

    def preflight(self) -> None:
        """Check that the files are there, hold lists, and that hub parameters come with a hub dataset."""
        super().preflight()
        found = self.origin().found
        kinds = {kind_of(file.name) for file in found} if isinstance(found, list) else set()
        if not kinds <= set(KINDS):
            raise UserError(
                f"{self.params.dataset!r} has {' and '.join(sorted(kinds - set(KINDS)))} files, whose records hold no "
                "list of messages",
                fix=f"name files of the kinds {', '.join(KINDS)}",
            )

    def run(self, context: Context) -> None:
        """Read every conversation and write those that are whole."""
        from stages.agent.conversation.records import write_trajectories

        origin, bad = self.origin(), BadRows(self.params.on_bad_row == "skip")
        licence, kept = origin.licence(), []
        for found in self._conversations(origin, bad, context.scratch / "fetched"):
            kept.append(found)
            context.progress(len(kept), self.params.limit or 0, "trajectories")
            if len(kept) == self.params.limit:
                break
        read = len(kept) + bad.count
        if not kept:
            raise UserError(
                f"{self.params.dataset} gives no conversations: {read} records read"
                + (f", {bad.count} bad, the first: {bad.shown[0]}" if bad.count else ""),
                fix=f"check the files, and that messages_field: {self.params.messages_field!r} holds the messages",
            )
        write_trajectories(context.output("trajectories"), kept, licence=licence, source=origin.name)
        messages = sum(len(found.messages) for found in kept)
        context.metrics(trajectories=len(kept), messages=messages, trajectories_read=read, bad_rows=bad.count)
        if bad.count:
            context.say(f"{bad.count} of {read} records are no conversation and were skipped: {bad.shown[0]}")
        details = {**self.params.identity(), "bad_rows": bad.shown}
        write_report(context.output("report"), "Trajectories read", context.results, details)

    def _conversations(self, origin: Origin, bad: BadRows, folder: Path) -> Iterator[Trajectory]:
        from stages.source.conversations import conversation

        for number, (where, record) in enumerate(self._records(origin, folder)):
            if record.fault:
                bad.note(where, record.place, record.fault, record.fix)
                continue
            try:
                found = conversation(number, record.fields, self.params.messages_field)
            except ValueError as error:
                bad.note(where, record.place, str(error), "")
                continue
            yield found

    def _records(self, origin: Origin, folder: Path) -> Iterator[tuple[Path | str, Record]]:
        """Every record with the file, or whatever else, that it is in."""
        from stages.source.conversations import OPTIONAL
        from stages.source.records import Fields, Record, hub_records, read_records

        fields = Fields(self.params.messages_field, OPTIONAL, parameter="messages_field")
        if origin.found is None:
            made = enumerate(generated_trajectories())
            yield from ((origin.text, Record(f" {number}", record)) for number, record in made)
        elif isinstance(origin.found, HubReference):
            rows = hub_records(origin.found, self.params.config, self.params.split or "train", fields)
            yield from ((origin.text, record) for record in rows)
        for where, file in origin.files(folder):
            yield from ((where, record) for record in read_records(file, fields))
