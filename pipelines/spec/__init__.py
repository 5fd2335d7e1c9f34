"""A pipeline file, from its text to a checked, typed `Pipeline`; every problem is told at once, with its place."""
