"""Stages that take no time, for tests of the engine: texts that are written, joined and cut."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.artifacts import Report, write_report
from stages.errors import StageError, UserError
from stages.stage import COSMETIC, EXECUTION, Context, Input, Output, Parameters, Stage
from tests import toy_helper


def read(report: Report) -> str:
    return report.content["details"]["text"]


class Toy(Stage):
    outputs = {"text": Output(Report)}
    metrics = ("length",)

    def write(self, context: Context, text: str) -> None:
        ran = os.environ.get("TOY_RAN")
        if ran:
            with Path(ran).open("a") as stream:
                stream.write(type(self).__name__ + ":" + text + "\n")
        context.metrics(length=len(text))
        write_report(context.output("text"), "toy", {"length": len(text)}, {"text": text})


class WriteParameters(Parameters):
    text: str = "hello"
    """What to write."""
    repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often."""
    scale: float = 1.0
    """A number."""
    mode: Literal["plain", "loud"] = "plain"
    """How to write it."""
    workers: Annotated[int, EXECUTION] = 1
    """How the work is done."""
    label: Annotated[str, COSMETIC] = ""
    """What people see."""


class Write(Toy):
    """Write a text."""

    Params = WriteParameters

    def run(self, context: Context) -> None:
        self.write(context, toy_helper.shout(self.params.text, self.params.mode) * self.params.repeat)


class ReadFileParameters(Parameters):
    path: Annotated[str, EXECUTION]
    """The file to read."""
    characters: Annotated[int, Field(ge=1)] = 5
    """How much of it counts."""


class ReadFile(Toy):
    """The beginning of a file."""

    Params = ReadFileParameters

    def sources(self) -> dict[str, Path | str]:
        if not Path(self.params.path).exists():
            raise UserError(f"no file {self.params.path}", fix="write it")
        return {"file": Path(self.params.path)}

    def run(self, context: Context) -> None:
        self.write(context, Path(self.params.path).read_text()[: self.params.characters])


class Join(Toy):
    """Join texts."""

    inputs = {"texts": Input(Report, many=True), "last": Input(Report, optional=True)}

    def run(self, context: Context) -> None:
        texts = [read(report) for report in context.inputs["texts"]]
        if "last" in context.inputs:
            texts.append(read(context.report("last")))
        self.write(context, "+".join(texts))


class CopyParameters(Parameters):
    mark: str = ""
    """Added at the end."""


class Copy(Toy):
    """The same text again."""

    Params = CopyParameters
    inputs = {"text": Input(Report)}

    def run(self, context: Context) -> None:
        context.progress(1, 2, "texts")
        context.log(1, speed=2.0)
        print("copying", flush=True)
        self.write(context, read(context.report("text")) + self.params.mark)


class FailParameters(Parameters):
    how: Literal["user", "fault", "kill", "sleep", "nothing", "nan", "interrupt"] = "fault"
    """How to fail."""
    until_attempt: int = 1_000
    """Works from this attempt on."""


class Fail(Toy):
    """Fails in a chosen way."""

    Params = FailParameters
    inputs = {"text": Input(Report, optional=True)}

    def run(self, context: Context) -> None:
        marks = context.scratch / "attempts"
        marks.write_text(marks.read_text() + "x" if marks.exists() else "x")
        if len(marks.read_text()) >= self.params.until_attempt:
            self.write(context, "at last")
            return
        match self.params.how:
            case "user":
                raise UserError("the input is bad", fix="mend the input")
            case "fault":
                raise StageError("something broke")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(60)
            case "interrupt":
                raise KeyboardInterrupt
            case "nan":
                context.metrics(length=float("nan"))
                write_report(context.output("text"), "toy", {}, {"text": ""})
            case "nothing":
                return


class GreedyParameters(Parameters):
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 8
    """Takes too much memory above `room`."""
    room: int = 2
    """The largest batch that fits."""
    error: Literal["MemoryError", "torch"] = "MemoryError"
    """What a lack of memory looks like."""


class Greedy(Toy):
    """Runs out of memory until its batch is small."""

    Params = GreedyParameters

    def run(self, context: Context) -> None:
        if self.params.batch_size > self.params.room:
            if self.params.error == "torch":
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"
                )
            raise MemoryError
        self.write(context, "fits")
