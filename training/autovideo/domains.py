"""Search domains: which values a search may try for a setting. Plain data, the same in code and in YAML."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from data_specs.strict import Strict
from training.core.config import ConfigError

Scalar = bool | int | float | str | None


class _Domain(Strict):
    when: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict)
    """Conditions: field of the same config → its value, or several; the setting is only searched where all hold."""


class Choice(_Domain):
    """One of some values; they need no order."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1)


class IntRange(_Domain):
    """An integer between two bounds, both included."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    step: int = Field(default=1, ge=1)
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "IntRange":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("a log range starts at 1 or above and has no step")
        return self


class FloatRange(_Domain):
    """A number between two bounds."""

    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "FloatRange":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError("a log range starts above 0")
        return self


Domain = Choice | IntRange | FloatRange

_ADAPTER: TypeAdapter[Domain] = TypeAdapter(Annotated[Domain, Field(discriminator="kind")])


def parse_domain(values: Any, where: str = "search domain") -> Domain:
    """Return a domain from plain values.

    Raises:
        ConfigError: not one; the message says what is wrong.
    """
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{where} is not valid:\n" + "\n".join(lines)) from None


def choice(*values: Any, when: dict[str, Any] | None = None) -> Choice:
    """Return a `Choice`."""
    return Choice(values=values, when=when or {})


def integers(low: int, high: int, *, step: int = 1, log: bool = False, when: dict[str, Any] | None = None) -> IntRange:
    """Return an `IntRange`."""
    return IntRange(low=low, high=high, step=step, log=log, when=when or {})


def floats(low: float, high: float, *, log: bool = False, when: dict[str, Any] | None = None) -> FloatRange:
    """Return a `FloatRange`."""
    return FloatRange(low=low, high=high, log=log, when=when or {})
