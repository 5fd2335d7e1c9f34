"""Runs whose driver is a job on a Ray cluster: sending them there, following them, cancelling them."""
