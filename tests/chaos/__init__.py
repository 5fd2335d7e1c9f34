"""Chaos: pipelines on a real Ray, disturbed at random moments, resumed, and compared with an undisturbed run.

    python -m tests.chaos --seeds 20

Each seed kills the driver, a worker, a rank of a training, or Ray's head with SIGKILL, or fills the disk, at a moment
drawn from the events of an undisturbed run. `regraft resume` must then give the same artifacts, byte for byte, without
doing again what was finished.
"""
