"""Cluster profiles, and the only code that talks to Ray's cluster and job APIs."""
