"""Runs one stage, wherever the executor put it: fetch inputs, check, run, digest, publish.

Everything that goes in and comes out is plain values, so that the same function works in this process and in Ray.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from pipelines.causes import is_disk_full
from pipelines.evidence import versions
from pipelines.running.children import children, end_children
from pipelines.running.ladder import is_out_of_memory
from pipelines.running.stage_log import captured_output, log_tail
from pipelines.running.task import InputRef, Outcome, Task
from pipelines.store import Manifest, Store, open_store
from pipelines.store.contents import tree_digest
from pipelines.store.lease import LeaseLostError, UnreachableError
from stages import registry
from stages.artifacts import Artifact
from stages.errors import RegraftError, StoppedError, UserError
from stages.memory import peak_memory_bytes, reset_peak_memory
from stages.stage import Context, Stage


def execute(task: Task, emit: Any) -> Outcome:
    """Run the attempt and publish its result. Never raises for a failure of the stage: the outcome tells."""
    began = time.monotonic()
    try:
        store = open_store(task.store)
        log = store.run_directory(task.run) / "logs" / task.log
        _prepare_process(task)
        with store.sharing(task.run, task.log), captured_output(log):
            return _guarded(task, store, log, emit, began)
    # The store cannot be opened, or the log cannot be written, where the stage was to run.
    except Exception as error:
        return _failure(error, task, None, time.monotonic() - began)


def _guarded(task: Task, store: Store, log: Path, emit: Any, began: float) -> Outcome:
    try:
        store.tell = lambda done, total, unit: emit({"event": "progress", "done": done, "total": total, "unit": unit})
        manifest = _attempt(task, store, emit)
        return Outcome(manifest.to_json(), time.monotonic() - began)
    except Exception as error:
        traceback.print_exc()
        return _failure(error, task, log, time.monotonic() - began)


def _attempt(task: Task, store: Store, emit: Any) -> Manifest:
    spec = registry.find(task.uses)
    stage = spec(spec.Params.model_validate(task.params))
    inputs = {name: _fetch(store, spec, name, references) for name, references in task.inputs.items()}
    stage.check(inputs)
    store.leases.check(task.lease)
    workspace = store.workspace(task.key, task.run)
    context = Context(
        inputs=inputs,
        out=workspace,
        scratch=store.scratch(task.key, f"{task.lease.nonce}-{task.attempt}"),
        seed=task.seed,
        resources=task.resources,
        emit=emit,
        stopping=emit.stopping,
    )
    reset_peak_memory()
    began, before = time.time(), children()
    try:
        _require_planned_sources(task, stage, store)
        stage.run(context)
        _require_planned_sources(task, stage, store)
        manifest = store.publish(
            _draft(task, context, began), spec.outputs, workspace, task.lease, replacing=task.replace
        )
    except BaseException:
        end_children(before)
        store.discard(workspace)
        raise
    store.drop_scratch(task.key)
    return manifest


def _require_planned_sources(task: Task, stage: Stage, store: Store) -> None:
    """Raise UserError unless what lies outside the store is still what the key was made of."""
    planned: dict[str, str] = dict(task.identity.get("sources", {}))
    for name, source in stage.sources().items():
        found = tree_digest(source, store.sources) if isinstance(source, Path) else source
        known = planned.pop(name, "not there")
        if found != known:
            raise UserError(
                f"{source} has changed since the run was planned: it was {known[:80]}, now it is {found[:80]}",
                where=name,
                fix="run the pipeline again, and let files be while a run reads them",
            )
    if planned:
        raise UserError(f"{', '.join(planned)}: gone since the run was planned", fix="put it back, or run again")


def _draft(task: Task, context: Context, began: float) -> Manifest:
    evidence = {
        **task.evidence,
        "attempt": task.attempt,
        "started": began,
        "seconds": round(time.time() - began, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "resources": vars(task.resources),
        "versions": versions(),
    }
    return Manifest(
        key=task.key,
        method=task.uses,
        identity=task.identity,
        code=task.code,
        outputs={},
        metrics=context.results,
        evidence=evidence,
        run=task.run,
        stage=task.stage,
    )


def _fetch(store: Store, stage: type[Stage], name: str, references: tuple[InputRef, ...]) -> Artifact | list[Artifact]:
    artifacts = [_artifact(store, stage, name, reference) for reference in references]
    return artifacts if stage.inputs[name].many else artifacts[0]


def _artifact(store: Store, stage: type[Stage], name: str, reference: InputRef) -> Artifact:
    manifest = store.find(reference.method, reference.key)
    if manifest is None:
        raise UserError(f"the result of stage {reference.stage!r} is gone from the store", fix="run the pipeline again")
    path = store.fetch(manifest, reference.output)
    return stage.inputs[name].kind(path, manifest.outputs[reference.output].digest, reference.stage)


def _prepare_process(task: Task) -> None:
    """Make a process that may have run other stages before look like one that starts with this stage."""
    sys.path.extend(entry for entry in task.search_path if entry not in sys.path)
    if Path(task.directory).is_dir():
        os.chdir(task.directory)
    threads = max(1, int(task.resources.cpus))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    random.seed(task.seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(task.seed % 2**32)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(task.seed)
        torch.set_num_threads(threads)


def _failure(error: Exception, task: Task, log: Path | None, seconds: float) -> Outcome:
    if isinstance(error, LeaseLostError):
        return Outcome(None, seconds, error.message, fenced=True)
    if isinstance(error, StoppedError):
        return Outcome(None, seconds, error.message)
    if isinstance(error, UserError):
        return Outcome(None, seconds, _said(error), error.fix, users_fault=not isinstance(error, UnreachableError))
    if is_disk_full(error):
        free = f"{shutil.disk_usage(log.parent).free / 2**20:,.0f} MiB free at {task.store}" if log else str(error)
        message = f"the disk is full: {free}"
        fix = "free some space, or use another disk with --store; what is finished is kept, run again to continue"
        return Outcome(None, seconds, message, fix, users_fault=True)
    if isinstance(error, ModuleNotFoundError):
        fix = f"pip install {(error.name or '').partition('.')[0]}"
        return Outcome(None, seconds, str(error), fix, users_fault=True)
    message, tail = f"{type(error).__name__}: {_said(error)}", log_tail(log) if log else ""
    fix = error.fix if isinstance(error, RegraftError) else ""
    return Outcome(None, seconds, message, fix, tail, out_of_memory=is_out_of_memory(error))


def _said(error: Exception) -> str:
    """What the error says, without its fix."""
    if not isinstance(error, RegraftError):
        return str(error)
    return f"{error.where}: {error.message}" if error.where else error.message
