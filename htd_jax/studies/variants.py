"""Variants: what a study changes from run to run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from htd_jax.distillers import METHODS
from htd_jax.pipeline import NO_METHOD, RunRequest, label
from htd_jax.settings import flag_name, flag_words, override

Changes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method, with some settings changed.

    Attributes:
      method: its name; `none` for the plain student.
      components: changed settings of the method's parts, by part: `{"htd": {"groups": 10}}`.
      training: changed fields of `Training`.
      settings: changed fields of `RunSettings`.
      part: the group of variants that it belongs to in tables, such as the setting that is varied.
      label: the name shown to people; the method's if empty.
      value: the position on the axis of a chart, if it has one.
    """

    method: str
    components: Mapping[str, Changes] = dataclasses.field(default_factory=dict)
    training: Changes = dataclasses.field(default_factory=dict)
    settings: Changes = dataclasses.field(default_factory=dict)
    part: str = ""
    label: str = ""
    value: float | None = None

    @property
    def name(self) -> str:
        """The name shown to people, as in a row of a table: `+ HTD`."""
        return self.label or ("student" if self.method == NO_METHOD else label(self.method).removeprefix("student "))

    @property
    def changes(self) -> dict[str, Any]:
        """The changed settings by the names of their flags: `{"htd.groups": 10}`."""
        parts = {f"{part}.{name}": value for part, own in self.components.items() for name, value in own.items()}
        return {name.replace("_", "-"): value for name, value in {**parts, **self.training, **self.settings}.items()}

    def flags(self) -> tuple[str, ...]:
        """Returns the method and its changes as flags of `htd-jax train`."""
        settings = {"method": self.method, **self.changes}
        return tuple(word for name, value in settings.items() for word in flag_words(name, value))

    def suffix(self) -> str:
        """Returns the end of the run folder's name, which tells it from the method's own: `htd.groups=10`."""
        return "-".join(f"{name}={value}" for name, value in self.changes.items())

    def apply(self, request: RunRequest) -> RunRequest:
        """Returns `request` with this method and these settings.

        Raises:
          TypeError: if a setting is unknown.
        """
        components = dict(request.components)
        for name in self.method.split("+"):
            if changes := self.components.get(flag_name(name)):
                components[flag_name(name)] = override(request.component(METHODS, name), **changes)
        return dataclasses.replace(
            request,
            settings=override(request.settings, method=self.method, **self.settings),
            training=override(request.training, **self.training),
            components=components,
        )


PLAIN = Variant(NO_METHOD)
