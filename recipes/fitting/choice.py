"""The most faithful way of a recipe that fits: every way's bytes from headers alone, as its files will have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compress.formats.errors import CompressError, RefusedError, UsageError
from compress.passes.core.base import Product
from compress.recipes.engines.subject import Subject
from compress.recipes.engines.verdicts import refuse_unloadable, verdicts
from compress.recipes.figures.cache import cache_of
from compress.recipes.figures.planned import FitPlan, FitRow
from compress.recipes.fitting.ways import Steps, Way
from compress.recipes.fitting.wish import Place

Weigh = Callable[[Steps], Sequence[Product]]
"""What passes will write. Raises RefusedError, or UsageError, for those that cannot be done."""


def choose(found: Sequence[Way], weigh: Weigh, place: Place, targets: Sequence[str]) -> tuple[Way, FitPlan]:
    """The first that fits `place` and that every one of `targets` loads something of.

    Raises RefusedError with the smallest if none does, and what `weigh` raises if none can be done.
    """
    weighed: dict[int, Sequence[Product]] = {}

    def once(steps: Steps) -> Sequence[Product]:
        """The same passes, with another cache, write the same."""
        if id(steps) not in weighed:
            weighed[id(steps)] = weigh(steps)
        return weighed[id(steps)]

    rows = [_row(way, once, place, targets) for way in found]
    fitting = [number for number, (row, _) in enumerate(rows) if row.fits]
    if not fitting:
        raise _refusal(rows, place)
    shown = [row.model_copy(update={"chosen": number == fitting[0]}) for number, (row, _) in enumerate(rows)]
    chosen, room = found[fitting[0]], place.room(shown[fitting[0]].cache_bytes)
    return chosen, FitPlan(
        allowed=place.allowed, context=place.context, users=place.users, rows=shown, told=chosen.told, room=room
    )


def _row(way: Way, weigh: Weigh, place: Place, targets: Sequence[str]) -> tuple[FitRow, CompressError | None]:
    """What a way takes, or what speaks against it."""
    try:
        products = weigh(way.steps)
        refuse_unloadable(targets, [verdict for product in products for verdict in verdicts(
            product.folder, Subject.of(product), targets)])  # fmt: skip
        sizes = [_sizes(product, way, place) for product in products]
    except (RefusedError, UsageError) as error:
        return FitRow(weights=way.weights, cache=way.cache, why=str(error)), error
    weights, cache = max(sizes, key=sum)
    needed = place.needed(weights, cache)
    fits = needed <= place.allowed
    row = FitRow(
        weights=way.weights, cache=way.cache, weights_bytes=weights, cache_bytes=cache, bytes=needed, fits=fits
    )
    return row, None


def _sizes(product: Product, way: Way, place: Place) -> tuple[int, int]:
    """Bytes of an artifact's weights and of its cache."""
    cache, note = cache_of(product.model.config)
    if cache is None:
        raise RefusedError(f"fit: {note}", "leave fit out, and set gates.max_bytes")
    return product.layout.nbytes, cache.held(place.context * place.users, way.width)


def _refusal(rows: Sequence[tuple[FitRow, CompressError | None]], place: Place) -> CompressError:
    possible = [row for row, error in rows if error is None]
    if not possible:
        errors = [error for _, error in rows if error]
        return errors[0] if errors else UsageError("fit: there is nothing to choose")
    least = min(possible, key=lambda row: row.bytes)
    return RefusedError(
        f"fit: nothing fits {place.allowed:,} bytes: the smallest, {least.weights} with a cache in {least.cache}, "
        f"takes {least.bytes:,} ({least.weights_bytes:,} of weights, {least.cache_bytes:,} of cache for "
        f"{place.users} × {place.context:,} tokens)",
        "allow more, or a shorter context, fewer users, a smaller model (shrink, gqa)",
    )
