"""Documents as YAML that people read: keys in our order, lines as lines, and a word where something
surprises."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

Document = dict[str, Any]
"""One object of Kubernetes, or a part of it."""


class Line(dict[str, Any]):
    """A mapping that is written on one line, where it fits."""


class _Dumper(yaml.SafeDumper):
    """Nothing stands for something else: an anchor saves lines and costs whoever looks for it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_line(dumper: yaml.SafeDumper, line: Line) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", line.items(), flow_style=True)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Line, _represent_line)


def to_yaml(document: Any) -> str:
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return str(text)


def write_documents(
    documents: Sequence[Any], headline: str, notes: Mapping[str, str] | None = None
) -> str:
    """
    Args:
        headline: comment at the top; lines without `#`.
        notes: comments by the beginning of the line that each stands above, the first such line.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in headline.splitlines())
    text = "---\n".join(to_yaml(document) for document in documents)
    return comment + _annotate(text, dict(notes or {}))


def _annotate(text: str, notes: dict[str, str]) -> str:
    lines = []
    for line in text.splitlines():
        said = line.lstrip(" -")
        start = next((start for start in notes if said.startswith(start)), None)
        if start is not None:
            indent = " " * (len(line) - len(line.lstrip(" ")))
            lines += [f"{indent}# {part}" for part in notes.pop(start).splitlines()]
        lines.append(line)
    return "\n".join(lines) + "\n"
