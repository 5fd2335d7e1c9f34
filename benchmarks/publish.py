"""The last thing that a part does: print its table, and hand its findings over where that is asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.findings import Findings
from benchmarks.table import circumstances, heading, section


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Every part has it."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every turn there, too")


def publish(findings: Findings, options: argparse.Namespace) -> None:
    """Print, write, and end with 1 when a claim did not hold."""
    print(f"{heading(circumstances(), findings.peers)}\n\n{section(findings)}")
    if options.json:
        options.json.write_text(json.dumps(findings.to_dict(), indent=1) + "\n", encoding="utf-8")
    if findings.broken:
        raise SystemExit(1)
