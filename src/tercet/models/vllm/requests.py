"""What requests to an engine server may say: types and limits, checked before the engine sees anything."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tercet.rows import Sampling, Seeded

MOST_PROMPTS, MOST_PARTS = 1 << 17, 1 << 13
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Whole = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class RequestError(ValueError):
    """A request that says something else than it may."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class SamplingBody(_Body):
    """`tercet.rows.Sampling`, or `Seeded` where there are seeds."""

    max_new_tokens: int = Field(ge=1, le=1 << 24)
    temperature: float = Field(ge=0, le=100)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0, lt=1 << 31)
    n: int = Field(ge=1, le=4096)
    seed: Whole
    stop: list[Stop] = Field(max_length=64)
    fit: bool
    seeds: list[Whole] | None = Field(None, max_length=MOST_PROMPTS)

    @property
    def sampling(self) -> Sampling:
        """The same as the generator's own type."""
        values = self.model_dump(exclude={"stop", "seeds"}) | {"stop": tuple(self.stop)}
        return Sampling(**values) if self.seeds is None else Seeded(**values, seeds=tuple(self.seeds))


class WriteBody(_Body):
    """The body of `/write`: prompts as token ids, and each one's stream of random numbers."""

    prompts: list[list[TokenId]] = Field(max_length=MOST_PROMPTS)
    sampling: SamplingBody
    streams: list[Whole] | None = Field(None, max_length=MOST_PROMPTS)


class UpdateBody(_Body):
    """The body of `/update`: the name of the update and how many parts it has."""

    update: str = Field(min_length=1, max_length=64)
    parts: int = Field(ge=1, le=MOST_PARTS)
    in_flight: bool


class ChecksumBody(_Body):
    """The body of `/checksum`: nothing."""


Kind = TypeVar("Kind", bound=_Body)


def checked(kind: type[Kind], text: bytes) -> Kind:
    """A body of this kind; RequestError says where it is not one."""
    try:
        found = kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise RequestError(f"{where or 'the body'}: {first['msg']:.200}") from None
    if isinstance(found, WriteBody):
        for name, one in (("streams", found.streams), ("sampling.seeds", found.sampling.seeds)):
            if one is not None and len(one) != len(found.prompts):
                raise RequestError(f"{name}: expected one for each of {len(found.prompts)} prompts, got {len(one)}")
    return found
