"""The base of every type of the stack file."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen and strict: "3" is not 3 and 1 is not true; an unknown key is an error, never ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
