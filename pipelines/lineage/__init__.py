"""Lineage in MLflow: a mirror of what the run directories already say.

    view.py        a run as its journal tells it; `status`, `logs` and the report read it, too
    feed.py        what the driver holds: starts the mirror as a process of its own and wakes it
    __main__.py    that process: `python -m pipelines.lineage STORE RUN [--follow]`
    mirror.py      applies the events of one journal to MLflow, from a cursor (cursor.py), never twice
    server.py      `serve` and `resync`: what the `ui` and `resync` commands call
    address.py     where MLflow is; tracker.py has the calls to it
    records.py     events as the flat names and short texts that MLflow holds; redact.py takes secrets out
    figures.py     the final figures of a stage as metrics
    links.py       what a stage read and made, as datasets and models
    acceptance.py  that somebody accepted a stage's changed code
    note.py        the description of a run, with the graph of its stages as an SVG (drawing.py, layout.py)
    rollouts.py    trajectories as MLflow traces
    kin.py         links a run and the one that it reruns or goes on with, both ways

The journal is the truth and MLflow a sink: deleting its database loses nothing that `resync` does not bring back.
Only `mirror.py`, `tracker.py`, `kin.py`, `links.py`, `rollouts.py` and `figures.py` import mlflow, and only the mirror
process and the server import them.
"""
