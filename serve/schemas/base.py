"""The base of every wire model."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Base of every wire model: unknown fields are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def shown(**example: Any) -> ConfigDict:
    """For `model_config` of a body: what /docs shows and lets people try."""
    return ConfigDict(json_schema_extra={"examples": [example]})
