"""One contender on one corpus, in this process: prints a line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from stages.memory import peak_memory_bytes


def ours(task: dict) -> dict[str, float]:
    from stages.artifacts import Dataset, Model
    from stages.data.prepare import PrepareData, PrepareDataParams
    from stages.stage import Context

    stage = PrepareData(PrepareDataParams(sequence_length=task["length"], heldout_fraction=0.01))
    inputs = {"text": Dataset(Path(task["text"])), "model": Model(Path(task["model"]))}
    work = Path(task["scratch"])
    import matplotlib.figure  # noqa: F401  (imports are no part of the figure)
    import tokenizers  # noqa: F401

    start = time.perf_counter(), time.process_time()
    context = Context(inputs, work / "out", work / "scratch")
    stage.run(context)
    found = context.results
    return {**_spent(start), "tokens": found["train_tokens"] + found["heldout_tokens"]}


def datasets_map(task: dict) -> dict[str, float]:
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    length, work = task["length"], Path(task["scratch"])

    def encode(batch: dict) -> dict:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*row, tokenizer.eos_token_id] for row in ids]}

    def cut(batch: dict) -> dict:
        joined = [token for row in batch["input_ids"] for token in row]
        ends = range(length, len(joined) + 1, length)
        return {"input_ids": [joined[end - length : end] for end in ends]}

    start = time.perf_counter(), time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    rows = load_dataset("parquet", data_files=f"{task['text']}/*.parquet", split="train", cache_dir=str(work / "cache"))
    rows = rows.map(encode, batched=True, remove_columns=["text"]).map(cut, batched=True)
    rows.to_parquet(str(work / "packed.parquet"))
    return {**_spent(start), "tokens": len(rows) * length}


def _spent(start: tuple[float, float]) -> dict[str, float]:
    return {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}


if __name__ == "__main__":
    contenders = {"regraft": ours, "datasets.map": datasets_map}
    found = contenders[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps({**found, "peak_bytes": peak_memory_bytes()}))
