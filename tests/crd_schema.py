"""What the API server does with a custom resource: defaults, the structural schema, CEL rules.

Unknown fields are errors here. The API server drops them without a word (pruning), and what was
meant is not there.

Source: kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import celpy.celtypes
import yaml
from celpy.adapter import json_to_cel

Schema = Mapping[str, Any]

TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}


@cache
def load_schema(path: Path, version: str) -> Schema:
    """Of one version of a CustomResourceDefinition; the files have a megabyte each."""
    document = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
    (schema,) = (
        one["schema"]["openAPIV3Schema"]
        for one in document["spec"]["versions"]
        if one["name"] == version
    )
    # The server knows these itself.
    known: Schema = {
        **schema,
        "properties": {
            **schema["properties"],
            "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    return known


def apply_defaults(schema: Schema, value: Any) -> Any:
    """The value as it is stored."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties")
        missing = {
            key: one["default"]
            for key, one in properties.items()
            if key not in value and "default" in one
        }
        return {
            key: apply_defaults(properties.get(key) or others or {}, one)
            for key, one in {**value, **missing}.items()
        }
    if isinstance(value, list):
        return [apply_defaults(schema.get("items", {}), one) for one in value]
    return value


def find_problems(schema: Schema, value: Any, old: Any = None, path: str = "") -> Iterator[str]:
    """Each with the path to it.

    Args:
        old: what it was before, where it is an update.
    """
    if value is None and schema.get("nullable"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{path}: {value!r} is neither number nor text"
    elif "type" in schema and not _is_a(schema["type"], value):
        yield f"{path}: {value!r} is no {schema['type']}"
        return
    yield from _find_in_scalar(schema, value, path)
    yield from _find_by_rules(schema, value, old, path)
    if isinstance(value, dict):
        yield from _find_in_object(schema, value, old if isinstance(old, dict) else {}, path)
    if isinstance(value, list):
        yield from _find_in_list(schema, value, path)


def _is_a(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name])


def _find_in_scalar(schema: Schema, value: Any, path: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value):
            yield f"{path}: {value!r} is not as {schema['pattern']}"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1 << 30):
            yield f"{path}: {len(value)} characters"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            yield f"{path}: {value} is out of bounds"


def _find_in_object(
    schema: Schema, value: dict[str, Any], old: dict[str, Any], path: str
) -> Iterator[str]:
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties")
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{path}.{key}: is required"
    for key, one in value.items():
        inner = properties.get(key, others)
        if inner is None:
            if not schema.get("x-kubernetes-preserve-unknown-fields"):
                yield f"{path}.{key}: is unknown, and would be dropped"
            continue
        yield from find_problems(inner, one, old.get(key), f"{path}.{key}")


def _find_in_list(schema: Schema, value: list[Any], path: str) -> Iterator[str]:
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys:
        names = [tuple(one.get(key) for key in keys) for one in value]
        for name in {name for name in names if names.count(name) > 1}:
            yield f"{path}: {name} is there twice"
    for at, one in enumerate(value):
        yield from find_problems(schema.get("items", {}), one, None, f"{path}[{at}]")


def _find_by_rules(schema: Schema, value: Any, old: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue  # a transition rule: nothing was there before
        names = {"self": json_to_cel(value), "oldSelf": json_to_cel(old)}
        if not _compiled(rule["rule"]).evaluate(names):
            yield f"{path}: {rule.get('message', rule['rule'])}"


@cache
def _compiled(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
