"""What a result is to fit: `fit` of a recipe, and what phones have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from compress.formats.errors import UsageError
from compress.recipes.figures.footprint import ROOM, USED_VRAM, with_room
from compress.recipes.gates.limits import Size

MOBILE = "mobile"
"""The target that stands for phones."""
_PHONE = 2_000_000_000
"""Bytes of a file and its cache together: what one app may keep of a phone's 6 to 8 GB."""
_PHONE_CONTEXT, _CONTEXT = 2048, 4096


class Fit(BaseModel):
    """Hardware to fit: bits of weights and cache that the recipe leaves open are chosen for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    vram: Size | None = Field(
        default=None, description="memory of the device that serves, as 24GiB; with target mobile 2GB if not said"
    )
    context: int | None = Field(
        default=None, ge=1, description=f"tokens of a conversation, by default {_CONTEXT}; mobile: {_PHONE_CONTEXT}"
    )
    users: int = Field(default=1, ge=1, description="conversations that are held at once")


class Place(NamedTuple):
    """A device and what is asked of it: `allowed` bytes, conversations of `context` tokens for `users` at once."""

    allowed: int
    context: int
    users: int
    phone: bool = False

    def needed(self, weights: int, cache: int) -> int:
        """Bytes that weights and cache take there; on a phone, which maps the file, no more than they have."""
        return weights + cache if self.phone else with_room(weights + cache)

    def room(self, cache: int) -> int:
        """Bytes of weights that there is memory for beside a cache."""
        return (self.allowed if self.phone else int(self.allowed / ROOM)) - cache


def place_of(fit: Fit | None, targets: Sequence[str]) -> Place | None:
    """What a recipe asks for; None for nothing. Raises UsageError where it does not say how much memory there is."""
    phone = MOBILE in targets
    if fit is None and not phone:
        return None
    fit = fit or Fit()
    if phone:
        return Place(min(fit.vram or _PHONE, _PHONE), fit.context or _PHONE_CONTEXT, fit.users, phone=True)
    if fit.vram is None:
        raise UsageError("fit: how much memory is there?", "say it, as fit: {vram: 24GiB, context: 32768, users: 4}")
    return Place(int(fit.vram * USED_VRAM), fit.context or _CONTEXT, fit.users)
