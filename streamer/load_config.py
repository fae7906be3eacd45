"""config.toml, environment and command line -> `Config`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource

from streamer.config import Config
from streamer.errors import ConfigError


def load_config(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read the configuration: `overrides` (nested dict, e.g. of the command line) over environment over file.

    path: a TOML file; None: built-in defaults alone. Raises ConfigError that names the key, its value and,
    for an unknown key, the nearest valid one.
    """
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")

    class _Loaded(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (init_settings, env_settings)
            return sources if path is None else (*sources, TomlConfigSettingsSource(settings_cls, path))

    where = str(path) if path else "configuration"
    try:
        loaded = _Loaded(**(overrides or {}))
        return Config.model_construct(**{name: getattr(loaded, name) for name in Config.model_fields})
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_describe(e)}" for e in error.errors())) from error
    except ValueError as error:  # malformed TOML, or environment values that are no JSON
        raise ConfigError(f"{where}: {error}") from error


def _describe(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        valid = keys_beside(Config, error["loc"])
        near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(valid)}"
        return f"unknown key {key!r}; {hint}"
    secret = any(word in key for word in ("password", "secret", "token"))
    shown = "" if secret or error["type"] == "missing" else f" (got {error['input']!r})"
    return f"{key}: {error['msg']}" + ("" if isinstance(error["input"], dict) else shown)


def keys_beside(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Keys that are valid in the section of an unknown key. model: of the whole configuration."""
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        candidates = (annotation, *get_args(annotation))
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
