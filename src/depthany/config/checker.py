"""Checks a configuration against a settings dataclass: keys, types, missing values, bounds and choices."""

import difflib
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf, SCMode
from omegaconf.errors import ConfigKeyError

from depthany.system.rules import rules

T = TypeVar("T")


def check_settings(
    cfg: DictConfig, schema: type, optional: tuple[str, ...] = (), **chosen: type
) -> DictConfig:
    """Returns the configuration with the types and defaults of `schema`.

    Checks the `Rule` of every field. A settings dataclass may check in `__post_init__` how its fields go
    together; its messages then begin with the name of a field.

    Args:
        schema: dataclass of the whole configuration. Nested settings are fields that are dataclasses.
        optional: keys below which settings may lack a value.
        chosen: dataclasses of fields whose type depends on another setting (`stage`).

    Raises:
        ValueError: a key is unknown, or a value is missing or not allowed.
        omegaconf.ValidationError: a value has the wrong type.
    """
    checked = _typed(cfg, schema, chosen)
    missing = sorted(OmegaConf.missing_keys(checked))
    needed = [key for key in missing if not any(f"{key}.".startswith(f"{name}.") for name in optional)]
    if needed:
        raise ValueError("these settings need a value: " + " ".join(f"{key}=..." for key in needed))
    _check_rules(checked)
    return checked


def settings_object(checked: DictConfig, schema: type[T]) -> T:
    """Returns checked settings as an object of their dataclass, with nested settings as objects of theirs."""
    made = OmegaConf.to_container(checked, resolve=True, structured_config_mode=SCMode.INSTANTIATE)
    assert isinstance(made, schema)
    return made


def _typed(cfg: DictConfig, schema: type, chosen: dict[str, type]) -> DictConfig:
    """Merges the configuration into the schema, which refuses unknown keys and wrong types."""
    expected = OmegaConf.structured(schema)
    parts = {name: OmegaConf.structured(part) for name, part in chosen.items()}
    for node in (expected, *parts.values()):
        _make_writable(node)
    try:
        checked = OmegaConf.merge(expected, parts, cfg)
    except ConfigKeyError as error:
        known = nested_keys(OmegaConf.merge(expected, parts))
        raise ValueError(unknown_setting(str(error.full_key), known)) from error
    assert isinstance(checked, DictConfig)
    return checked


def _make_writable(node: DictConfig) -> None:
    """Makes settings writable: those of a frozen dataclass are read-only, and no value can be merged in."""
    OmegaConf.set_readonly(node, None)
    for name in node:
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            _make_writable(node[name])


def _check_rules(node: DictConfig, prefix: str = "") -> None:
    """Checks the rules of a settings dataclass and of those nested in it."""
    schema = OmegaConf.get_type(node)
    assert schema is not None
    rule_of, values = rules(schema), dict[str, Any]()
    for name in (each.name for each in fields(schema)):
        values[name] = MISSING if OmegaConf.is_missing(node, name) else node[name]
        if isinstance(values[name], DictConfig) and is_dataclass(OmegaConf.get_type(values[name])):
            _check_rules(values[name], f"{prefix}{name}.")
        elif name in rule_of and values[name] != MISSING:
            rule_of[name].check(f"{prefix}{name}", values[name])
    if hasattr(schema, "__post_init__"):
        try:
            schema(**values)
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from error


def nested_keys(settings: Any, prefix: str = "") -> list[str]:
    """Returns the dotted keys of nested settings, including those that hold further settings."""
    keys = list[str]()
    for key in map(str, settings) if isinstance(settings, DictConfig) else ():
        keys.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(settings, key) and not OmegaConf.is_interpolation(settings, key):
            keys += nested_keys(settings[key], f"{prefix}{key}.")
    return keys


def unknown_setting(key: str, known: list[str]) -> str:
    """Returns the message about an unknown key, with the closest known key."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "--help lists all"
    return f"unknown setting {key!r}; {hint}"
