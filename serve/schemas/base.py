"""The base of every wire model."""

from typing import Any

from pydantic import ConfigDict

from serve.described import Described


class Wire(Described):
    """Base of every wire model: unknown fields are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def shown(**example: Any) -> ConfigDict:
    """For `model_config` of a body: what /docs shows and lets people try."""
    return ConfigDict(json_schema_extra={"examples": [example]})
