"""Fuzzing of pipeline files: whatever stands in one, the answer is a plan or a clear error, soon.

    python -m tests.fuzz --files 10000 --seed 0

Every shipped YAML file, and a toy one with all that the format can do, is changed at random: lines, tokens, keys,
types, references, bytes. A file that is answered with anything but a plan or a UserError naming the file and a line is
printed with its number, and `--only NUMBER` makes the same file again.
"""
