"""The run report: one self-contained HTML page a run, for a person.

    values.py          what a report says
    gather.py          the journal and the manifests as plain values (pure)
    models.py          the table from teacher to final model (pure)
    figures.py         training curves drawn, figures of reports read
    render.py          the page, from `report.html.j2`
    change.py          one figure against another, in words
    write.py           all of it: `write_report`, which the engine and `regraft report` call

The page loads nothing: its policy forbids it, figures are part of it, and whatever stages and pipelines say is escaped.
Credentials are masked as in MLflow, for the page travels as far.
"""
