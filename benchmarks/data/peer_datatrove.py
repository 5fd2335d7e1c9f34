"""datatrove's tokenizer on one corpus; runs in an environment of its own and prints a line of JSON."""

import json
import re
import sys
import time

from datatrove.data import Document  # type: ignore[import-not-found]
from datatrove.pipeline.tokens import DocumentTokenizer  # type: ignore[import-not-found]
from datatrove.utils.logging import logger  # type: ignore[import-not-found]

task = json.loads(sys.argv[1])
logger.remove()
step = DocumentTokenizer(
    output_folder=f"{task['scratch']}/tokens",
    tokenizer_name_or_path=f"{task['model']}/tokenizer.json",
    eos_token=task["eos"],
    save_filename="corpus",
)
start = time.perf_counter(), time.process_time()
with open(task["jsonl"], encoding="utf-8") as lines:  # noqa: PTH123
    documents = (Document(text=json.loads(line)["text"], id=str(number)) for number, line in enumerate(lines))
    step.run(documents, rank=0, world_size=1)
spent = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}
tokens = step.stats.stats["tokens"].total
with open("/proc/self/status") as status:  # noqa: PTH123  (ru_maxrss would begin with what the parent process had)
    peak = re.search(r"VmHWM:\s+(\d+)", status.read())
print(json.dumps({**spent, "tokens": tokens, "peak_bytes": 1024 * int(peak[1]) if peak else 0}))
