"""What is recorded beside results."""

import pytest

from pipelines.evidence import machine, processor_of


@pytest.mark.parametrize(
    ("cpuinfo", "processor"),
    [
        ("cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC (family 23, model 1)"),
        ("cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7763\n\nmodel name: other", "AMD EPYC 7763"),
        ("model name\t: POWER10\n", "POWER10"),
        ("model name\t: Virtual\n", "Virtual"),
    ],
)
def test_a_processor_is_told_so_that_it_can_be_told_from_others(cpuinfo, processor):
    assert processor_of(cpuinfo) == processor


def test_this_machine_is_one():
    here = machine()
    assert here["processor"]
    assert here["cpus"] >= 1
    assert here["memory_bytes"] > 2**28
