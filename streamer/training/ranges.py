"""What the sections of a recipe share: their base, and the types of their numbers."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from streamer.config import PositiveFloat

Number = TypeVar("Number", int, float)


def _rising(pair: tuple[Number, Number]) -> tuple[Number, Number]:
    if pair[0] > pair[1]:
        raise ValueError(f"the lower end comes first, got {pair}")
    return pair


NotNegative = Annotated[float, Field(ge=0)]
UpToOne = Annotated[float, Field(gt=0, le=1)]
Scale = Annotated[float, Field(gt=0, le=10)]
Pixels = Annotated[float, Field(gt=0, le=100)]
"""Of a kernel."""
Gamma = Annotated[float, Field(ge=0, le=5)]
"""Natural logarithm of an exponent."""
Quality = Annotated[int, Field(ge=1, le=100)]
"""Of JPEG."""
Crf = Annotated[float, Field(ge=1, le=51)]
"""Constant rate factor of x264; 0 would be its lossless profile."""

Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]
"""Lowest and highest value drawn."""
ScaleRange = Annotated[tuple[Scale, Scale], AfterValidator(_rising)]
PixelRange = Annotated[tuple[Pixels, Pixels], AfterValidator(_rising)]
ShareRange = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_rising)]
UpToOneRange = Annotated[tuple[UpToOne, UpToOne], AfterValidator(_rising)]
QualityRange = Annotated[tuple[Quality, Quality], AfterValidator(_rising)]
CrfRange = Annotated[tuple[Crf, Crf], AfterValidator(_rising)]


class Section(BaseModel):
    """A part of the configuration: cannot be changed, knows all its keys."""

    # JSON, which checkpoints keep it in, has no infinite numbers
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
