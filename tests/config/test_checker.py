"""The rules of settings, and what a configuration is checked for."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from depthany.config.checker import check_settings, nested_keys
from depthany.system.rules import Rule, check_fields, setting, split_words

TABLE = {"one": 1}


@dataclass(frozen=True)
class Inner:
    low: float = setting(1.0, above=0)
    high: float = setting(2.0, most=9)
    both: tuple[float, float] = setting((1.0, 2.0), length=2, least=0)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low}: expected at most high={self.high}")


@dataclass
class Part:
    name: str = setting()
    trim: float = setting(least=0, most=1)


@dataclass
class Outer:
    kind: str = setting(choices=TABLE)
    words: Any = setting(None, choices=TABLE, words=True)
    inner: Inner = field(default_factory=Inner)
    sets: dict[str, Any] = field(default_factory=dict)
    part: Any = setting()


def checked(optional: tuple[str, ...] = (), **settings: Any) -> DictConfig:
    given = {"kind": "one", "part": {"name": "a", "trim": 0.5}} | settings
    return check_settings(OmegaConf.create(given), Outer, optional, part=Part)


def test_defaults_and_types_come_from_dataclasses() -> None:
    cfg = checked(inner={"low": 2})
    assert (cfg.inner.low, type(cfg.inner.low), list(cfg.inner.both)) == (2.0, float, [1.0, 2.0])
    assert OmegaConf.get_type(cfg, "part") is Part


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "above": ({"inner": {"low": 0}}, "^inner.low=0.0: expected more than 0$"),
    "most": ({"inner": {"high": 10}}, "^inner.high=10.0: expected at most 9$"),
    "element": ({"inner": {"both": [-1, 1]}}, r"^inner.both=\[-1.0, 1.0\]: expected 0 or more$"),
    "length": ({"inner": {"both": [1]}}, r"^inner.both=\[1.0\]: expected 2 numbers$"),
    "together": ({"inner": {"low": 5}}, "^inner.low=5.0: expected at most high=2.0$"),
    "choice": ({"kind": "two"}, "^unknown kind 'two'; choose from one$"),
    "word": ({"words": "one,two"}, "^unknown words 'two'; choose from one$"),
    "no word": ({"words": ","}, "^words=,: expected one or more values"),
    "chosen": ({"part": {"name": "a", "trim": 2}}, "^part.trim=2.0: expected 0 to 1$"),
    "missing": ({"part": {"name": "a"}}, "^these settings need a value: part.trim=...$"),
    "unknown": ({"inner": {"lo": 1}}, r"^unknown setting 'inner.lo'; did you mean inner.low\?$"),
    "far off": ({"zzz": 1}, "^unknown setting 'zzz'; --help lists all$"),
    "unknown in the chosen": (
        {"part": {"trum": 1}},
        r"^unknown setting 'part.trum'; did you mean part.trim\?$",
    ),
}


@pytest.mark.parametrize("settings, message", MISTAKES.values(), ids=MISTAKES)
def test_mistake_names_key_and_expectation(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(**settings)


def test_optional_settings_may_lack_values() -> None:
    sets = {"a": {"root": "???"}}
    assert OmegaConf.is_missing(checked(("sets",), sets=sets).sets.a, "root")
    with pytest.raises(ValueError, match=r"need a value: sets\.a\.root=\.\.\.$"):
        checked(("set", "sets.ab"), sets=sets)


def test_table_may_grow_after_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "two", 2)
    assert checked(kind="two").kind == "two"


def test_none_passes_every_rule() -> None:
    Rule(least=1, choices=("a",), length=2, words=True).check("key", None)


def test_words_come_from_text_and_list() -> None:
    assert split_words("key", "a, b") == split_words("key", ["a", "b"]) == ["a", "b"]


def test_object_checks_its_own_fields() -> None:
    @dataclass(frozen=True)
    class Strength:
        share: float = setting(0.5, least=0, most=1)

        def __post_init__(self) -> None:
            check_fields(self)

    assert Strength(1).share == 1
    with pytest.raises(ValueError, match=r"^share=1\.5: expected 0 to 1$"):
        Strength(1.5)


def test_keys_of_missing_and_interpolated_parts_are_known() -> None:
    cfg = OmegaConf.create({"a": {"b": "???", "c": "${a.b}"}, "d": [1]})
    assert nested_keys(cfg) == ["a", "a.b", "a.c", "d"]


def test_true_and_false_are_listed_as_written() -> None:
    with pytest.raises(ValueError, match=r"^unknown compile 'yes'; choose from auto, true, false$"):
        Rule(choices=("auto", True, False)).check("compile", "yes")
