"""Groups of Prometheus rules, and the file they are written as."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

Severity = Literal["page", "ticket"]
"""Page: somebody gets up for it. Ticket: somebody looks at it on a working day."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is computed ahead, by name."""

    name: str
    expr: str
    labels: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        own = {"labels": self.labels} if self.labels else {}
        return {"record": self.name, "expr": self.expr, **own}


@dataclass(frozen=True, slots=True)
class Alert:
    """What somebody is told, and what they do then."""

    name: str
    expr: str
    severity: Severity
    summary: str
    """One line, with the series' labels in it."""
    runbook: str
    """Where to look, and what helps."""
    lasting: str = ""
    """How long it must be so; at once when empty."""

    def document(self) -> dict[str, Any]:
        lasting = {"for": self.lasting} if self.lasting else {}
        return {
            "alert": self.name,
            "expr": self.expr,
            **lasting,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": self.runbook},
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Evaluated one after the other: what is below sees what is above as of now."""

    name: str
    rules: Sequence[Record | Alert]

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "rules": [rule.document() for rule in self.rules]}


class _Dumper(yaml.SafeDumper):
    """Lines stay lines, and nothing stands for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def write_rules(groups: Sequence[Group], headline: str) -> str:
    """A rule file of Prometheus.

    Args:
        headline: comment at its top; lines without `#`.
    """
    comment = "".join(f"# {line}\n" for line in headline.splitlines())
    document = {"groups": [group.document() for group in groups]}
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return comment + str(text)
