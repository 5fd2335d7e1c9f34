"""Keeping a store in order: what is in it, what may go, what is named, and how a result leaves it.

files.py       the store's own small files, on a disk or behind a URL
runs.py        what each run used, made and may still read
catalogue.py   every artifact by its content, and what is known of those that are gone
directory.py   which artifact a directory on disk is a copy of
reference.py   `RUN:stage.output`, `stage`, a tag or a key: which artifact is meant
tags.py        names that people give to runs and artifacts
alive.py       which runs are at work, and the keys they hold
gc.py          what stays, what goes, and why; leftovers.py finds what is no result, sweep.py removes it
export.py      a result as a plain Hugging Face directory; card.py writes its README
publish.py     takes what is private out of it
figures.py     what was measured of an artifact
"""
