"""Settings read from a TOML file, or from names and values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from .settings import Settings, SettingsError

S = TypeVar("S", bound=Settings)


def from_mapping(values: Mapping[str, object], source: str = "the settings", form: type[S] = Settings) -> S:
    """Settings of a form from names and values; SettingsError for unknown names and wrong types."""
    kinds = {field.name: type(field.default) for field in fields(form)}
    checked = {}
    for name, value in values.items():
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(kinds)}."
            raise SettingsError(f"{source}: there is no setting '{name}'; {hint}")
        kind = kinds[name]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise SettingsError(f"{source}: {name} must be of type {kind.__name__}, not {value!r}.")
        checked[name] = value
    return form(**checked)


def read(path: str | Path, form: type[S] = Settings) -> S:
    """Settings of a form from a TOML file; SettingsError if it is none."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            raise SettingsError("reading TOML needs Python 3.11 or newer, or the package tomli (pip install tomli)."
                                ) from None
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: the file could not be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: this is no TOML file: {error}") from error
    return from_mapping(values, path.name, form)
