"""A page to read trajectories on: one HTML file that loads nothing and runs no scripts. Everything said is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from stages.agent.conversation.messages import FAULTS, Message, parse_turn
from stages.agent.evaluate.scores import Outcome

MOST_SHOWN: Final = 100
_MOST_CHARACTERS: Final = 4000
_PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Trajectories</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; --rule: #8886; --right: #1a7f37; --wrong: #cf222e; --faint: #7a828b; }}
body {{ max-width: 900px; margin: 0 auto; padding: 24px 16px; font: 15px/1.5 system-ui, sans-serif; }}
summary {{ cursor: pointer; padding: 6px 0; }}
details {{ border-bottom: 1px solid var(--rule); }}
.right {{ color: var(--right); }} .wrong {{ color: var(--wrong); }} .faint {{ color: var(--faint); font-size: 13px; }}
.message {{ margin: 0 0 10px 18px; border-left: 3px solid var(--rule); padding: 0 0 0 12px; }}
.assistant {{ border-color: #4493f8; }} .tool {{ border-color: #9a6700; }}
pre {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }}
</style></head><body>
<h1>Trajectories</h1>
<p class="faint">{told}</p>
{episodes}
</body></html>
"""


def write_page(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the first `MOST_SHOWN` episodes, each folded under its question."""
    shown = outcomes[:MOST_SHOWN]
    told = f"{len(shown)} of {len(outcomes)} episodes, {sum(outcome.success for outcome in outcomes)} with success."
    page = _PAGE.format(told=told, episodes="\n".join(_episode(outcome) for outcome in shown))
    file.write_text(page, encoding="utf-8")


def _episode(outcome: Outcome) -> str:
    found = outcome.trajectory
    mark, word = ("right", "✓") if outcome.success else ("wrong", "✗")
    answer = "no answer" if found.answer is None else f"answered {found.answer!r}"
    told = (
        f"{answer}, right is {' or '.join(map(repr, found.answers))} · F1 {found.reward:.2f} · "
        f"{outcome.counts.get('calls', 0)} calls · {outcome.tokens} tokens · seed {outcome.seed} · "
        f"ended: {found.ending}"
    )
    messages = "\n".join(_message(message) for message in found.messages)
    return (
        f'<details><summary><b class="{mark}">{word}</b> {escape(found.question)}'
        f'<br><span class="faint">{escape(told)}</span></summary>\n{messages}\n</details>'
    )


def _message(message: Message) -> str:
    fault = parse_turn(message.content).fault if message.role == "assistant" else None
    note = f' <span class="wrong">{escape(FAULTS[fault])}</span>' if fault else ""
    role, text = escape(message.role), message.content
    cut = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …"
    return f'<div class="message {role}"><span class="faint">{role}</span>{note}<pre>{escape(cut)}</pre></div>'
