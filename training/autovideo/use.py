"""A named primitive with its settings, as it stands in a document: `{use: augment/hflip, with: {p: 0.5}}`."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_serializer, model_validator

from data_specs.strict import Strict
from training.autovideo.plain import hint


class Use(Strict):
    """A primitive inside another one's config (the children of a combiner), without edges of its own."""

    use: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """Written `with`; of the primitive's config."""

    @model_validator(mode="before")
    @classmethod
    def _with(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {"use": values}
        if isinstance(values, Mapping) and "with" in values:
            if "settings" in values:
                raise ValueError("`with` and `settings` are the same thing: write `with` only")
            values = {("settings" if key == "with" else key): value for key, value in values.items()}
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}{hint(str(key), ('use', 'with'))} (known: use, with)")
        return values

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        return {"use": self.use, "with": self.settings}

    def resolved(self, where: str) -> "Use":
        """Return the same with every default written out.

        Raises:
            ConfigError: no such primitive, or settings that are not valid; `where` stands before the field.
        """
        from training.autovideo.catalogue import configure

        config = configure(self.use, self.settings, where)
        return Use(use=self.use, settings=config.model_dump(mode="json"))
