"""One trained proxy, as `proxy.train` writes it into its report and others read it. Imported to plan: no numpy.

A recipe is known by the content of its data (the digest of the dataset), so names mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.artifacts import Report
from stages.errors import UserError


@dataclass(frozen=True)
class Domain:
    """Losses on held-out text of one domain, in nats a token."""

    name: str
    digest: str
    initial: float
    final: float
    curve: tuple[tuple[int, float], ...]
    """(step, loss) while training, the last at the last step."""


@dataclass(frozen=True)
class Trained:
    """A proxy: what it was trained on, how, and how its held-out losses went."""

    recipe: str
    """Name of the recipe, for people."""
    digest: str
    """Digest of the recipe's data, which is what makes it this recipe."""
    learning_rate: float
    """Peak, in effect."""
    reduction: float
    """What the standard learning rate was divided by."""
    batch_sequences: int
    tokens: int
    """To train on, as asked for; whole steps may be a few more."""
    steps: int
    seed: int
    parameters: int
    """Outside the embeddings."""
    epochs: float
    """Times through the data."""
    setting: str
    """Everything else that decides the result, as canonical JSON: equal for proxies that can be compared."""
    domains: tuple[Domain, ...]
    mixture: Mapping[str, str] = field(default_factory=dict)
    """The shares of the mixture that it was trained on, as its card has them; empty where the data is no mixture."""

    @property
    def initial(self) -> float:
        """Mean loss over the domains before the first step."""
        return sum(domain.initial for domain in self.domains) / len(self.domains)

    @property
    def final(self) -> float:
        """Mean loss over the domains after the last step."""
        return sum(domain.final for domain in self.domains) / len(self.domains)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, mean loss over the domains), from step 0."""
        steps = [step for step, _ in self.domains[0].curve]
        losses = [[loss for _, loss in domain.curve] for domain in self.domains]
        means = [sum(column) / len(column) for column in zip(*losses, strict=True)]
        return [(0, self.initial), *zip(steps, means, strict=True)]

    @classmethod
    def of(cls, report: Report) -> Trained:
        """What `report` tells. Raises UserError when it is not one of `proxy.train`."""
        details = report.content.get("details", {})
        if "proxy" not in details:
            raise UserError(
                f"the report of {report.name or report.path} is not that of a proxy: {report.content.get('title')!r}",
                fix="give reports of `proxy.train`",
            )
        found = dict(details["proxy"])
        domains = tuple(
            Domain(**{**domain, "curve": tuple((int(step), loss) for step, loss in domain["curve"])})
            for domain in sorted(found.pop("domains"), key=lambda domain: domain["digest"])
        )
        return cls(**found, domains=domains)


def short_count(count: float) -> str:
    """`950`, `12.3k`, `1.2M`, `7B`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def canonical(values: Mapping[str, Any]) -> str:
    """The same values, the same text."""
    return json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
