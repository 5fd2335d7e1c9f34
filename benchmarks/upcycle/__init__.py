"""Upcycling: making a mixture of files, and running its feed-forward layer."""
