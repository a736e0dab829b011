"""Settings: the limits in their types, what an error says, and the registries that hold them."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
from annotated_types import Ge, Gt, Interval

from htd_jax import data, distillers, models
from htd_jax.errors import UserError
from htd_jax.evaluation import Evaluation
from htd_jax.settings import Registry, as_json, check, flag_name, override
from htd_jax.training import Training


@dataclasses.dataclass(frozen=True)
class Every:
    """Settings of every kind."""

    count: Annotated[int, Ge(1)] = 1
    share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    below: Annotated[int, Interval(ge=0, lt=8)] = 0
    above: Annotated[float, Gt(0)] = 1.0
    plain: float = 0.0
    kind: Literal["near", "far"] = "near"
    perhaps: Annotated[int, Ge(1)] | None = None
    several: tuple[Annotated[int, Ge(1)], ...] = (1, 2)
    name: str = "x"
    place: Path | None = None
    on: bool = True


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"count": 1},
        {"share": 0},  # an integer is a number
        {"share": 1.0},
        {"below": 7},
        {"above": 1e-300},
        {"plain": -1e300},
        {"kind": "far"},
        {"perhaps": None},
        {"perhaps": 1},
        {"several": ()},
        {"several": [3, 4]},
        {"place": Path("x")},
        {"on": False},
    ],
)
def test_what_the_limits_allow(good):
    check(Every(**good))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"count": 0}, "`count` must be at least 1, not 0"),
        ({"count": True}, "`count` must be a whole number, not True"),
        ({"count": 1.0}, "`count` must be a whole number, not 1.0"),
        ({"count": "1"}, "`count` must be a whole number, not '1'"),
        ({"count": None}, "`count` must be a whole number, not None"),
        ({"share": 1.5}, "`share` must lie in [0, 1], not 1.5"),
        ({"share": -0.1}, "`share` must lie in [0, 1], not -0.1"),
        ({"share": math.nan}, "`share` must be finite, not nan"),
        ({"share": False}, "`share` must be a number, not False"),
        ({"below": 8}, "`below` must lie in [0, 8), not 8"),
        ({"below": -1}, "`below` must lie in [0, 8), not -1"),
        ({"above": 0}, "`above` must be more than 0, not 0"),
        ({"plain": math.inf}, "`plain` must be finite, not inf"),
        ({"plain": "much"}, "`plain` must be a number, not 'much'"),
        ({"kind": "middle"}, "`kind` must be one of near, far, not 'middle'"),
        ({"perhaps": 0}, "`perhaps` must be at least 1, not 0"),
        ({"several": (2, 0)}, "`several` must be at least 1, not 0"),
        ({"several": (2, "x")}, "`several` must be a whole number, not 'x'"),
        ({"several": 5}, "`several` must be a sequence of values, not 5"),
        ({"name": 5}, "`name` must be of type str, not 5"),
        ({"place": "x"}, "`place` must be of type Path, not 'x'"),
        ({"on": 1}, "`on` must be of type bool, not 1"),
    ],
)
def test_what_the_limits_refuse_and_by_which_setting(bad, message):
    with pytest.raises(UserError) as refused:
        check(Every(**bad))
    assert str(refused.value) == message
    with pytest.raises(UserError) as refused:
        check(Every(**bad), "own.")
    assert str(refused.value) == message.replace("`", "`own.", 1)


def all_settings() -> list[type]:
    registries = (data.SOURCES, models.MODELS, distillers.METHODS)
    return [Training, Evaluation, *(settings for registry in registries for settings in registry.values())]


@pytest.mark.parametrize("settings", all_settings(), ids=lambda settings: settings.__name__)
def test_defaults_are_possible_and_whatever_is_no_value_is_refused(settings):
    check(settings())
    for field in dataclasses.fields(settings):
        with pytest.raises(UserError, match=f"`own.{field.name}` must be "):
            check(override(settings(), **{field.name: object()}), "own.")
        if type(field.default) in (int, float):
            limits = getattr(get_type_hints(settings, include_extras=True)[field.name], "__metadata__", ())
            below = [-1] if limits else []  # what has no limit, as a shift of scores, may be any number
            for no_number in (math.nan, math.inf, True, "1", *below):
                with pytest.raises(UserError, match=f"`{field.name}` must "):
                    check(override(settings(), **{field.name: no_number}))


def test_json_has_lists_and_strings():
    made = Every(several=(3, 4), place=Path("a") / "b")
    assert as_json(made) == {
        **dataclasses.asdict(Every()),
        "several": [3, 4],
        "place": str(Path("a") / "b"),
    }


def test_override_names_the_settings():
    assert override(Every(), count=3, kind="far") == Every(count=3, kind="far")
    with pytest.raises(TypeError, match="Every has no setting 'cuont'; did you mean count. it has count, share, below"):
        override(Every(), cuont=3)


# --- registries


@dataclasses.dataclass(frozen=True)
class Mine:
    """Somebody else's."""

    strength: float = 1.0


class NoSettings:
    pass


@dataclasses.dataclass(frozen=True)
class Demanding:
    """A setting without a default."""

    strength: float


class Base:
    pass


@dataclasses.dataclass(frozen=True)
class Inherited(Base):
    """Settings of a registry that asks for a base class."""


def registry(**options: Any) -> Registry:
    return Registry("method", {"every": Every}, **({"base": object} | options))


def test_a_registry_is_a_mapping_that_can_be_added_to():
    known = registry()
    known.register("mine", Mine)
    known.register("mine", Mine)  # once more is no other
    assert (list(known), len(known), known["mine"], "mine" in known) == (["every", "mine"], 2, Mine, True)
    assert "another" not in known and "test_settings:Mine" not in known


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("every", Mine, "another method is registered as 'every'"),
        ("none", Mine, "another method is registered as 'none'"),
        ("My", Mine, "'My' is no name of a method: use lower-case letters, digits and dashes"),
        ("a b", Mine, "'a b'"),
        ("a.b", Mine, "'a.b'"),
        ("-a", Mine, "'-a'"),
        ("", Mine, "''"),
        ("mine", NoSettings, "the settings of method 'mine' must be a frozen dataclass"),
        ("mine", Mine(), "the settings of method 'mine' must be a frozen dataclass"),
        ("mine", Demanding, "the setting 'strength' of method 'mine' must have a default"),
    ],
)
def test_what_a_registry_does_not_take(name, settings, message):
    known = registry(reserved=("none",))
    with pytest.raises(ValueError, match=message):
        known.register(name, settings)
    assert list(known) == ["every"]


def test_a_class_is_found_by_module_and_name():
    assert registry()["test_settings:Mine"] is Mine


def test_a_registry_may_ask_for_a_base_class():
    known = Registry("method", {}, base=Base)
    known.register("mine", Inherited)
    assert known["test_settings:Inherited"] is known["mine"] is Inherited
    with pytest.raises(ValueError, match="the settings of method 'other' must inherit Base"):
        known.register("other", Mine)
    with pytest.raises(UserError, match=r"must inherit Base\); set `method`"):
        known.load("test_settings:Mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "unknown method 'magic' (known: none, every); set `method`"),
        (
            "no_such_module:Mine",
            "cannot import method no_such_module:Mine (No module named 'no_such_module'); set `method`",
        ),
        ("test_settings:Nothing", "cannot import method test_settings:Nothing (module"),
        (":Mine", "cannot import method :Mine (Empty module name"),
        (
            "test_settings:NoSettings",
            "cannot import method test_settings:NoSettings (the settings of method 'test_settings:NoSettings' must be",
        ),
    ],
)
def test_what_a_registry_does_not_find(name, message):
    with pytest.raises(UserError) as refused:
        registry(reserved=("none",)).load(name)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("htd", "htd"),
        ("citeulike-t", "citeulike-t"),
        ("package.module:MyMethod", "my-method"),
        ("module:HTD", "htd"),
        ("module:Method2Go", "method2-go"),
        ("module:my_method", "my-method"),
    ],
)
def test_what_flags_begin_with(name, flag):
    assert flag_name(name) == flag
