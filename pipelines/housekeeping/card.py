"""The README of an exported model or dataset: front matter that the Hub reads, lineage, figures, and how to load it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from pipelines.cli.format import format_metric
from pipelines.housekeeping.ancestry import Ancestry, Step
from pipelines.housekeeping.figures import Measured
from pipelines.planning.canonical import is_digest

# fmt: off
LICENCES: Final = frozenset({
    "apache-2.0", "mit", "openrail", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "odc-by",
    "pddl", "unlicense", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma",
})
# fmt: on
"""Licences that the Hub knows by this name; any other is `other`, with its name beside it."""


def model_card(
    name: str,
    ancestry: Ancestry,
    config: Mapping[str, Any],
    facts: Mapping[str, float],
    figures: Sequence[Measured],
    files: Sequence[str],
) -> str:
    """The card of a model; `config` is its config.json, `files` what lies in the directory."""
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **_licence(ancestry, "model"),
        **_hub(ancestry, "model", "base_model"),
        **_hub(ancestry, "dataset", "datasets"),
        "tags": _tags(ancestry),
    }
    size = ", ".join(
        f"{format_metric(key, value)} {key}".replace("bytes", "of weights") for key, value in facts.items()
    )
    lead = f"A `{_architecture(config)}`" + (f" ({size})" if size else "") + f", made by {_made_by(ancestry)}."
    parts = [_front(front), f"# {name}", lead, "## Load it", _load_model(name, config, files)]
    parts += ["## Where it comes from", _lineage(ancestry)]
    if figures:
        parts += ["## Measured", "Of exactly these weights, by content.", _figures(figures)]
    return "\n\n".join([*parts, *_details(files)]) + "\n"


def dataset_card(name: str, ancestry: Ancestry, card: Mapping[str, Any], files: Sequence[str]) -> str:
    """The card of a dataset; `card` is its dataset.json."""
    front = {
        **_licence(ancestry, "dataset"),
        **_hub(ancestry, "dataset", "source_datasets"),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "shard-*.parquet"}]}],
        "tags": _tags(ancestry),
    }
    counts = {"rows": card.get("num_rows"), "tokens": card.get("num_tokens"), "bytes of text": card.get("num_bytes")}
    told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    lead = f"A dataset of schema `{card.get('schema')}`: {told}; made by {_made_by(ancestry)}."
    load = f'```python\nfrom datasets import load_dataset\n\ndata = load_dataset("{name}", split="train")\n```'
    parts = [_front(front), f"# {name}", lead, "## Load it", load, "## Where it comes from", _lineage(ancestry)]
    return "\n\n".join([*parts, *_details(files)]) + "\n"


def _front(values: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---"


def _sources(ancestry: Ancestry, kind: str) -> list[Step]:
    return [step for step in ancestry.of_kind(kind) if not step.inputs]


def _licence(ancestry: Ancestry, kind: str) -> dict[str, str]:
    """The one licence of all sources of this kind; several, or none that is known, are not decided here."""
    declared = [step.declared.get("licence", "") for step in _sources(ancestry, kind)]
    names = sorted({licence for licence in declared if licence})
    if not names or not all(declared):
        return {"license": "other", "license_name": " and ".join([*names, "not declared"])} if names else {}
    if len(names) == 1 and names[0].lower() in LICENCES:
        return {"license": names[0].lower()}
    return {"license": "other", "license_name": " and ".join(names)}


def _hub(ancestry: Ancestry, kind: str, field: str) -> dict[str, list[str]]:
    """Sources that are on the Hub, by the names they have there; the Hub refuses a card with other names."""
    found = [step.declared.get("source", "") for step in _sources(ancestry, kind)]
    names = [source.removeprefix("hub:").partition("@")[0] for source in found if source.startswith("hub:")]
    return {field: sorted(set(names))} if names else {}


def _tags(ancestry: Ancestry) -> list[str]:
    families = {
        step.method.partition(".")[0] for step in ancestry.steps.values() if "." in step.method.partition(":")[0]
    }
    return ["regraft", *sorted(families - {"source", "data", "evaluate"})]


def _made_by(ancestry: Ancestry) -> str:
    return f"`{ancestry.step.method}` in a regraft pipeline"


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [config.get("model_type", "model")])[0])


def _load_model(name: str, config: Mapping[str, Any], files: Sequence[str]) -> str:
    remote = ", trust_remote_code=True" if config.get("auto_map") else ""
    tokenizer = "tokenizer_config.json" in files or "tokenizer.json" in files
    lines = [f"from transformers import AutoModelForCausalLM{', AutoTokenizer' if tokenizer else ''}", ""]
    lines = (
        ["import grafts  # registers the changed structure with transformers", *lines] if "grafts" in config else lines
    )
    lines += [f'model = AutoModelForCausalLM.from_pretrained("{name}"{remote})']
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("{name}")'] if tokenizer else []
    method = (config.get("quantization_config") or {}).get("quant_method")
    needs = ["pip install transformers" + (" compressed-tensors" if method == "compressed-tensors" else "")]
    needs += ["pip install regraft"] if "grafts" in config else []
    code = "\n".join(lines)
    return "```\n" + "\n".join(needs) + f"\n```\n\n```python\n{code}\n```"


def _lineage(ancestry: Ancestry) -> str:
    rows = ["| Made | By | Told | From | Key | Code | Commit | When |", "|---|---|---|---|---|---|---|---|"]
    return "\n".join([*rows, *(_row(ancestry, step) for step in ancestry.steps.values())])


def _row(ancestry: Ancestry, step: Step) -> str:
    told = ", ".join(f"{name} {value}" for name, value in step.changed.items())
    told += f"{', ' if told else ''}seed {step.seed}" if step.seed else ""
    read = [f"{ancestry.steps[edge.key].stage}.{edge.output}" if edge.key else edge.digest[:8] for edge in step.inputs]
    if not read:
        licence = f" ({step.declared['licence']})" if step.declared.get("licence") else ""
        sources = [source[:8] if is_digest(source) else source for source in list(step.sources.values())[:4]]
        origin = step.declared.get("source") or ", ".join(sources)
        read = [f"{origin}{licence}"]
    if step.drift:
        told += f"; its code has changed since, accepted because: {step.drift.get('reason', '')}"
    day = time.strftime("%Y-%m-%d", time.gmtime(step.started)) if step.started else ""
    made = f"**{step.stage}**" if step.key == ancestry.key else step.stage
    cells = [
        made,
        f"`{step.method}`",
        told,
        ", ".join(dict.fromkeys(read)),
        step.key[:8],
        step.code[:8],
        step.commit[:8],
        day,
    ]
    return _cells(cells)


def _figures(figures: Sequence[Measured]) -> str:
    rows = ["| Figure | Value | By | Told | On |", "|---|---:|---|---|---|"]
    for found in figures:
        told = ", ".join(f"{name} {value}" for name, value in found.told.items())
        for name, value in found.metrics.items():
            on = ", ".join(found.on)
            rows.append(_cells([name, format_metric(name, value), f"`{found.manifest.method}`", told, on]))
    return "\n".join(rows)


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _details(files: Sequence[str]) -> list[str]:
    text = "`lineage.json` holds the same with full digests, the digest of every file, and every parameter; "
    text += "`regraft lineage` on this directory shows it, and which files were changed since."
    whole = ["`pipeline.yaml` is the whole pipeline with every matrix and value filled in."]
    return ["## Details", "\n".join([*whole, text] if "pipeline.yaml" in files else [text])]
