"""Checks of options: each raises a ConfigError that names the option."""

from __future__ import annotations

from rl3d.errors import ConfigError


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def need_not_negative(options: object, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        need(0 <= value < float("inf"), f"{prefix}.{name} must not be negative, got {value}")


def need_share(options: object, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        need(0 <= value <= 1, f"{prefix}.{name} must lie in [0, 1], got {value}")
