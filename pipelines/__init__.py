"""The engine and the DAGs people run: spec, plan, store, run, lineage, command line."""
