"""The pipeline of the behaviour table, for each tool: `s0` takes the first line of a file, `s1` and `s2` sign it.

Each stage runs a script of its own, which the tool is told of, and that script uses a helper, which it is not: so does
everybody's code. `s1` writes half of its output first, and waits while the file `slow` is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.orchestrator.tools import Dvc, Tool

STAGES: Final = ("s0", "s1", "s2")
HELPER: Final = "hand_on() {\n  cat $1\n}\n"
SCRIPT: Final = """\
. ./helper.sh
echo {name} >> executed
(hand_on {source} | {take}; {sign}) > whole.{name}
if [ -e slow ] && [ {name} = s1 ]; then head -c 2 whole.{name} > {name}.out; touch halfway; sleep 4; fi
cat whole.{name} > {name}.out
"""
SOURCE: Final = {"s0": "input.txt", "s1": "s0.out", "s2": "s1.out"}
SIGN: Final = {"s0": "true", "s1": "echo s1", "s2": "echo s2"}
TAKE: Final = {"s0": "head -n 1", "s1": "cat", "s2": "cat"}

MODULE: Final = '''\
"""The stages."""

import time
from pathlib import Path

import bench_helper
from stages.artifacts import Report, write_report
from stages.stage import Context, Input, Output, Parameters, Stage


class Hand(Stage):
    """Hands on a text, signed."""

    inputs = {"text": Input(Report)}
    outputs = {"text": Output(Report)}

    def run(self, context: Context) -> None:
        text = context.report("text").content["details"]["text"]
        self.put(context, bench_helper.hand_on(text) + type(self).__name__.lower() + "\\n")

    def put(self, context: Context, text: str) -> None:
        name = type(self).__name__.lower()
        with Path("executed").open("a") as stream:
            stream.write(name + "\\n")
        if name == "s1" and Path("slow").exists():
            (context.output("text") / "half").write_text(text[:2])
            Path("halfway").touch()
            time.sleep(4)
            (context.output("text") / "half").unlink()
        write_report(context.output("text"), "hand", {}, {"text": text})


class TakeParameters(Parameters):
    count: int = 1
    """Lines."""


class S0(Hand):
    """The first lines of a file."""

    Params = TakeParameters
    inputs = {}

    def sources(self) -> dict[str, Path | str]:
        return {"file": Path("input.txt").absolute()}

    def run(self, context: Context) -> None:
        lines = Path("input.txt").read_text().splitlines()[: self.params.count]
        self.put(context, bench_helper.hand_on("\\n".join(lines) + "\\n"))


class S1(Hand):
    """Hands it on."""


class S2(Hand):
    """Hands it on."""
'''
PYTHON_HELPER: Final = '"""What the stages share."""\n\n\ndef hand_on(text: str) -> str:\n    return str(text)\n'
PIPELINE: Final = """\
name: small
stages:
  s0: {uses: "bench_stages:S0", with: {count: 1}}
  s1: {uses: "bench_stages:S1", inputs: {text: s0}, resources: {cpus: 1}}
  s2: {uses: "bench_stages:S2", inputs: {text: s1}}
"""


@dataclass
class Small:
    """The pipeline in one directory, as one tool sees it, and ways to disturb it."""

    tool: Tool
    directory: Path

    def write(self) -> None:
        """Write everything into a fresh directory."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.tool.prepare(self.directory)
        self.set("input.txt", "first\nsecond\n")
        if self.tool.name == "regraft":
            self.set("bench_stages.py", MODULE)
            self.set("bench_helper.py", PYTHON_HELPER)
            self.set("p.yaml", PIPELINE)
            return
        self.set("helper.sh", HELPER)
        for name in STAGES:
            self.set(f"{name}.sh", SCRIPT.format(name=name, source=SOURCE[name], take=TAKE[name], sign=SIGN[name]))
        self.set(*PEERS[self.tool.name](space=" "))

    def set(self, name: str, text: str) -> None:
        """Write a file of the pipeline."""
        (self.directory / name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a file of the pipeline."""
        text = (self.directory / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        self.set(name, text.replace(old, new))

    def respace(self) -> None:
        """Change white space that means nothing in what the tool is told to run."""
        if self.tool.name == "regraft":
            self.edit("p.yaml", "with: {count: 1}", "with: { count:  1 }")
            self.edit("bench_stages.py", "[: self.params.count]", "[:self.params.count]")
        else:
            self.set(*PEERS[self.tool.name](space="  "))

    def artifact(self, stage: str) -> Path:
        """The file that a stage made."""
        if self.tool.name != "regraft":
            return self.directory / f"{stage}.out"
        entry = json.loads((self.directory / f".regraft/last/small/{stage}.json").read_bytes())
        folder = self.directory / ".regraft/artifacts" / entry["method"].replace(":", "-")
        return next(folder.glob(f"{entry['key'][:8]}*/text/*.json"))

    def text(self, stage: str) -> str:
        """What a stage made."""
        content = self.artifact(stage).read_text()
        return json.loads(content)["details"]["text"] if self.tool.name == "regraft" else content

    def corrupt(self, stage: str) -> None:
        """Change the content of a stage's output behind the tool's back."""
        file = self.artifact(stage)
        file.chmod(file.stat().st_mode | stat.S_IWUSR)
        text = file.read_text()
        file.unlink()
        file.write_text(text.replace("first", "wrong"))

    def delete(self, stage: str) -> None:
        """Remove a stage's output, and the tool's own copy of it where it keeps one."""
        if isinstance(self.tool, Dvc):
            digest = hashlib.md5(self.artifact(stage).read_bytes(), usedforsecurity=False).hexdigest()
            (self.directory / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
        self.artifact(stage).unlink()


def _make(space: str) -> tuple[str, str]:
    rules = [f"{n}.out: {SOURCE[n]} {n}.sh\n\t@sh{space}{n}.sh\n" for n in STAGES]
    return "Makefile", "all: s2.out\n" + "\n".join(rules)


def _doit(space: str) -> tuple[str, str]:
    tasks = [
        f"    yield dict(name='{n}', actions=['sh{space}{n}.sh'], "
        f"file_dep=['{SOURCE[n]}', '{n}.sh'], targets=['{n}.out'])"
        for n in STAGES
    ]
    return "dodo.py", "def task_all():\n" + "\n".join(tasks) + "\n"


def _snakemake(space: str) -> tuple[str, str]:
    rules = [
        f"rule {n}:\n    input: '{SOURCE[n]}', '{n}.sh'\n    output: '{n}.out'\n    shell: 'sh{space}{n}.sh'\n"
        for n in STAGES
    ]
    return "Snakefile", "rule all:\n    input: 's2.out'\n\n" + "\n".join(rules)


def _dvc(space: str) -> tuple[str, str]:
    stages = [
        f"  {n}:\n    cmd: sh{space}{n}.sh\n    deps: [{SOURCE[n]}, {n}.sh]\n    outs: [{n}.out]\n" for n in STAGES
    ]
    return "dvc.yaml", "stages:\n" + "".join(stages)


PEERS: Final = {"make": _make, "doit": _doit, "snakemake": _snakemake, "dvc": _dvc}
