"""What a run may leave behind: processes here, actors and placement groups in its cluster. Finds it and ends it.

Every process that Ray starts for a run carries the run's name in its environment, from its very start, so that it is
found whatever its parents have become; a process of another run, or of anybody else, never is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psutil

VARIABLE: Final = "REGRAFT_RUN"
"""Names the run that a process works for."""
STOP_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.2


@contextlib.contextmanager
def marked(run: str) -> Iterator[None]:
    """Let processes started meanwhile carry the name of the run."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = run
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def processes(run: str) -> list[psutil.Process]:
    """Processes of this machine, of this user, that work for `run`; this one and its parents are not counted."""
    import psutil

    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            of_run = process.pid not in own and process.environ().get(VARIABLE) == run
            if of_run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_processes(run: str, patience_seconds: float = STOP_SECONDS) -> list[str]:
    """Wait for the processes of `run` to end, then terminate them, then kill them; returns those that still live."""
    import psutil

    for end in (None, psutil.Process.terminate, psutil.Process.kill):
        for process in processes(run):
            with contextlib.suppress(psutil.NoSuchProcess):
                if end is not None:
                    end(process)
        if until(lambda: not processes(run), patience_seconds):
            return []
    return [_told(process) for process in processes(run)]


def kill_processes(run: str) -> list[str]:
    """Kill, at once, what a dead driver left on this machine; returns what has been killed."""
    import psutil

    killed = []
    for process in processes(run):
        with contextlib.suppress(psutil.NoSuchProcess):
            killed.append(_told(process))
            process.kill()
    until(lambda: not processes(run), STOP_SECONDS)
    return killed


def end_in_cluster(job: str) -> list[str]:
    """Wait until Ray knows no living actor and no placement group of the Ray job `job`; returns what stays.

    Asks the cluster's own tables, which are there without a dashboard. A group whose maker was killed is removed here.
    """
    left: list[str] = []

    def gone() -> bool:
        groups = list(_groups(job))
        for group in groups:
            _remove(group)
        left[:] = [*_actors(job), *(f"placement group {name or identity}" for identity, name in groups)]
        return not left

    until(gone, STOP_SECONDS)
    return left


def free_groups_of_the_dead(job: str) -> None:
    """Remove the placement groups of the Ray job `job` whose maker, an actor, was killed.

    Ray keeps such a group for as long as the job lives, and training's own helper that would remove it may have been
    killed as well, by a machine that ran out of memory say: the next attempt would wait for what the last one holds.
    """
    for group in list(_groups(job, of_the_dead=True)):
        _remove(group)


def _actors(job: str) -> Iterator[str]:
    import ray._private.state

    for actor in ray._private.state.actors().values():
        if actor["JobID"] == job and actor["State"] != "DEAD":
            yield f"actor {actor['ActorClassName']} (process {actor['Pid']} on {actor['Address']['IPAddress']})"


def _groups(job: str, *, of_the_dead: bool = False) -> Iterator[tuple[str, str]]:
    """Placement groups of the job that are not removed, all or those of dead actors: identity and name.

    Ray's own reader leaves out the job.
    """
    import ray._private.state
    from ray.core.generated import gcs_pb2

    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    for data in table:
        group = gcs_pb2.PlacementGroupTableData.FromString(data)
        of_this_job = group.creator_job_id.hex() == job and group.state != gcs_pb2.PlacementGroupTableData.REMOVED
        if of_this_job and (not of_the_dead or _lost_its_maker(group)):
            yield group.placement_group_id.hex(), group.name


def _lost_its_maker(group: Any) -> bool:
    """Whether an actor made it, and is dead; Ray calls the actor dead where there was none."""
    import ray

    return group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil()


def _remove(group: tuple[str, str]) -> None:
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group[0]))))


def _told(process: Any) -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        return f"process {process.pid} ({process.name()})"
    return f"process {process.pid}"


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Look until `true` or the time is over; whether it became true."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_SECONDS)
    return True
