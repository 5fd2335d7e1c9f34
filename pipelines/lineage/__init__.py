"""Lineage in MLflow: a mirror of what the run directories already say.

    feed.py      what the driver holds: starts the mirror as a process of its own and wakes it
    __main__.py  that process: `python -m pipelines.lineage STORE RUN [--follow]`
    mirror.py    applies the events of one journal to MLflow, from a cursor, never twice
    server.py    `serve` and `resync`: what the `ui` and `resync` commands call
    drawing.py   the graph of stages as an SVG
    rollouts.py  trajectories as MLflow traces
    kin.py       links a run and the one that it reruns or goes on with, both ways

The journal is the truth and MLflow a sink: deleting its database loses nothing that `resync` does not bring back.
Only `mirror.py`, `tracker.py`, `kin.py`, `links.py`, `rollouts.py` and `figures.py` import mlflow, and only the mirror
process and the server import them.
"""
