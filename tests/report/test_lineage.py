"""The page in MLflow, beside the picture of the graph."""

from pipelines.lineage.address import settle_environment

settle_environment()


def test_the_page_is_an_artifact_of_the_parent_run(tmp_path, monkeypatch):
    from pipelines.lineage.cursor import Cursor
    from pipelines.lineage.mirror import RunMirror
    from pipelines.lineage.tracker import Tracker
    from pipelines.report.write import write_report
    from pipelines.store import open_store
    from tests.lineage.journals import Writer, stage

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    writer = Writer(tmp_path, "r")
    writer.start([stage("teacher", "source.model")])
    writer.finish("teacher", makes={"model": "model"})
    write_report(open_store(str(tmp_path)), "r", {"event": "run-finished", "state": "done", "seconds": 3.0})
    writer.end()
    tracker = Tracker(tmp_path)
    RunMirror(tmp_path, "r", tracker).catch_up()
    parent = Cursor.load(tmp_path / "runs" / "r").parent
    assert "report.html" in {file.path for file in tracker.client.list_artifacts(parent)}
