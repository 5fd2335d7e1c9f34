"""Doing it: stages as work of an executor, their attempts and leases, the journal of the run, how it ends."""
