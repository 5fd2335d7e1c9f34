"""mergekit-moe on one set of models, in this process: prints a line of JSON. It knows nothing of this project."""

import json
import re
import sys
import time

from mergekit.scripts.moe import main  # type: ignore[import-not-found]


def peak_bytes() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123  (ru_maxrss would begin with what the parent process had)
        peak = re.search(r"VmHWM:\s+(\d+)", status.read())
    return 1024 * int(peak[1]) if peak else 0


task = json.loads(sys.argv[1])
recipe = {
    "base_model": task["seed"],
    "gate_mode": "random",
    "dtype": "float32",
    "experts_per_token": 2,
    "experts": [{"source_model": path} for path in task["experts"]],
}
file = f"{task['work']}/recipe.yaml"
with open(file, "w") as stream:  # noqa: PTH123
    json.dump(recipe, stream)
before, start = peak_bytes(), (time.perf_counter(), time.process_time())
main([file, task["out"], "--quiet"], standalone_mode=False)
spent = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
peak = peak_bytes()
print(json.dumps({**spent, "peak_bytes": peak, "grown_bytes": peak - before}))
