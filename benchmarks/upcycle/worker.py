"""Our builder on one set of models, in this process: prints a line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from grafts.experts.graft import Experts
from grafts.experts.settings import Making
from grafts.experts.stream import build_mixture
from stages.memory import peak_memory_bytes

if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    making = Making(first_is_expert=False, others="first", router_std=0.02, seed=0)
    graft = Experts(num_experts=len(task["experts"]), top_k=2, making=making)
    before, start = peak_memory_bytes(), (time.perf_counter(), time.process_time())
    build_mixture([Path(path) for path in (task["seed"], *task["experts"])], graft, Path(task["out"]))
    spent = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
    peak = peak_memory_bytes()
    print(json.dumps({**spent, "peak_bytes": peak, "grown_bytes": peak - before}))
