"""A group of knobs: what every recipe is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of knobs. Frozen; an unknown knob is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


FREE: dict[str, Any] = {"free": True}
"""Marks a knob that changes how fast a result comes, never the result: a run may be resumed with another value of it."""
