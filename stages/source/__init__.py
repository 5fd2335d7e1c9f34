"""Stages that bring models and text in from packages, the hub and local files. Nothing is read without being pinned."""
