"""One measurement of one contender, in a process of its own; prints a line of JSON. See `benchmarks.training`."""

from __future__ import annotations

import importlib
import json
import sys

MEASURES = {
    ("lm", "regraft"): "benchmarks.training.next_token:measure_regraft",
    ("lm", "transformers"): "benchmarks.training.next_token:measure_transformers",
    ("kd", "regraft"): "benchmarks.training.distilling:measure_online",
    ("kd", "regraft cache"): "benchmarks.training.distilling:measure_cached",
    ("kd", "trl"): "benchmarks.training.distilling:measure_trl",
}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    module, _, name = MEASURES[asked["task"], asked["contender"]].partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(asked)))
