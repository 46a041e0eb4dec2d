"""The base of every wire model."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """Base of every wire model: unknown fields are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
