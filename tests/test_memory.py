"""Peak memory is that of one process, not of the one that started it."""

import subprocess
import sys

import pytest

from benchmarks.orchestrator.measure import run
from stages import memory
from stages.memory import peak_memory_bytes, peak_memory_of, reset_peak_memory

MIB = 2**20
TELL = "from stages.memory import peak_memory_bytes; {work}; print(peak_memory_bytes())"


def told(work: str = "pass") -> int:
    done = subprocess.run([sys.executable, "-c", TELL.format(work=work)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_was_held_and_let_go_counts():
    reset_peak_memory()
    before = peak_memory_bytes()
    held = b"x" * (200 * MIB)
    del held
    assert peak_memory_bytes() - before > 150 * MIB


def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it():
    held = b"x" * (200 * MIB)
    small, large = told(), told(f"b'x' * {150 * MIB}")
    del held
    assert small < 100 * MIB
    assert large - small > 120 * MIB


def test_of_another_process():
    words = [sys.executable, "-c", "import sys; print('here', flush=True); sys.stdin.read()"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    assert 2 * MIB < peak_memory_of(process.pid) < 100 * MIB
    process.communicate()
    assert peak_memory_of(process.pid) is None


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_where_nothing_tells_of_processes(monkeypatch, system, unit):
    usage = memory.resource.getrusage(memory.resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(memory, "peak_memory_of", lambda _: None)
    monkeypatch.setattr(memory.sys, "platform", system)
    assert usage * unit <= peak_memory_bytes() < 1.5 * usage * unit


def test_a_small_command_of_the_engine_s_benchmark_is_not_told_as_large_as_the_benchmark(tmp_path):
    assert peak_memory_bytes() > 60 * MIB
    assert 0 < run(["sleep", "0.2"], tmp_path, {}).peak_mebibytes < 20
    words = [sys.executable, "-c", f"import time; held = b'x' * {300 * MIB}; time.sleep(0.2)"]
    assert 300 < run(words, tmp_path, {}).peak_mebibytes < 400
