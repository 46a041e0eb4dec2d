"""Models whose fields are described by the strings that stand below them.

Pydantic's `use_attribute_docstrings` does that while a model is defined, by reading its source: a
tenth of the start of a replica, in which nobody ever reads a description. Here the source is read
when a JSON schema is made.
"""

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Described(BaseModel):
    """Base: `/openapi.json` and every other JSON schema say what the source says of each field."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        described = (base for base in cls.__mro__ if issubclass(base, Described))
        for base in described:  # what is nearest says it first
            for name, text in _strings_of(base.__module__).get(base.__name__, {}).items():
                if name in properties:
                    properties[name].setdefault("description", text)
        return schema


@cache
def _strings_of(module: str) -> Mapping[str, Mapping[str, str]]:
    """By class and attribute; nothing where the source is not there."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError):
        return {}
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {node.name: dict(_read(node.body)) for node in classes}


def _read(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for attribute, below in zip(body, body[1:], strict=False):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield attribute.target.id, inspect.cleandoc(below.value.value)
