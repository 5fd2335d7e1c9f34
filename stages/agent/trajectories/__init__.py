"""Trajectories to learn from: a scripted expert's, and the cleaning of anybody's."""
