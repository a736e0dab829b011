"""What a study varies: a method, with some settings other than usual."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from htd_jax.distillers import METHODS
from htd_jax.pipeline import NO_METHOD, Config, describe
from htd_jax.settings import flag_name, override, typed

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A run of a study, but for its seed and width.

    Attributes:
      method: by its name; `none` for the plain student.
      own: settings of the method's parts, by part and name: `{"htd": {"groups": 10}}`.
      training, what: others of `Training` and of `What`.
      part: of the study that it belongs to: `K`.
      label: its name for people within that; the method's if empty.
      value: where it stands on an axis, if it has a place there.
    """

    method: str
    own: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    training: Values = dataclasses.field(default_factory=dict)
    what: Values = dataclasses.field(default_factory=dict)
    part: str = ""
    label: str = ""
    value: float | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.label or title(self.method)

    @property
    def is_usual(self) -> bool:
        """Whether nothing but the method is varied."""
        return not (self.own or self.training or self.what)

    def flags(self) -> tuple[str, ...]:
        """What `htd-jax train` is told."""
        words = [word for name, value in self._given() for word in typed(name, value)]
        return ("--method", self.method, *words)

    def suffix(self) -> str:
        """What tells its run folder from that of its method as usual: `htd.groups=10`."""
        return "-".join(f"{name}={value}" for name, value in self._given())

    def _given(self) -> list[tuple[str, Any]]:
        of = [*((f"{part}.", values) for part, values in self.own.items()), ("", self.training), ("", self.what)]
        return [(prefix + name.replace("_", "-"), value) for prefix, values in of for name, value in values.items()]

    def of(self, config: Config) -> Config:
        """`config` with this method and these settings; its folder is not that of the method as usual.

        Raises:
          TypeError: a setting that there is not.
        """
        own = dict(config.own)
        for name in self.method.split("+"):
            if values := self.own.get(flag_name(name)):
                own[flag_name(name)] = override(own.get(flag_name(name)) or METHODS[name](), **values)
        return dataclasses.replace(
            config,
            what=override(config.what, method=self.method, **self.what),
            training=override(config.training, **self.training),
            own=own,
        )


PLAIN = Variant(NO_METHOD)


def title(name: str) -> str:
    """A method's name for people, as a row has it: `+ HTD`."""
    if name == NO_METHOD:
        return "student"
    return describe(name).removeprefix("student ")
