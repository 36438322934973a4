"""What an artifact says of itself as a whole."""

from __future__ import annotations

from typing import Any

from compress.recipes.engines.subject import Check, Subject, listed


def never(reason: str) -> Check:
    """Whatever the artifact, it is not loaded."""
    return lambda subject: reason


def any_model() -> Check:
    """Whatever the dialect can hold is loaded."""
    return lambda subject: None


def one_setting(subject: Subject) -> str | None:
    """All quantized weights are in one number format."""
    names = {spec.format.name for spec in subject.quantized.values() if spec.format}
    return f"weights are in {listed(sorted(names))}, and one is known for all; use one" if len(names) > 1 else None


def option(key: str, *allowed: Any, default: Any = None) -> Check:
    """An option of the dialect has one of these values; `default` is what a file means that does not say."""

    def check(subject: Subject) -> str | None:
        value = subject.options.get(key, default)
        return None if value in allowed else f"{key} is {value!r}; use {listed(allowed)}"

    return check


def architectures(*allowed: str) -> Check:
    """config.json's model_type is one of these."""

    def check(subject: Subject) -> str | None:
        kind = subject.model.config.get("model_type")
        return None if kind in allowed else f"has no {kind} in this container; choose another dialect"

    return check


def other_architectures(*refused: str, why: str) -> Check:
    """config.json's model_type is none of these."""

    def check(subject: Subject) -> str | None:
        kind = subject.model.config.get("model_type")
        return f"{why} for {kind}; choose another dialect" if kind in refused else None

    return check


def either(*checks: Check) -> Check:
    """One of these holds; if none, the first says why."""

    def check(subject: Subject) -> str | None:
        found = [reason for each in checks if (reason := each(subject))]
        return found[0] if len(found) == len(checks) else None

    return check
