"""Quantities as people read them."""

from __future__ import annotations


def file_size(nbytes: float) -> str:
    """Bytes on disk, in decimal units: `98.4 MB`."""
    return _scaled(nbytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def memory_size(nbytes: float) -> str:
    """Bytes in memory, in binary units: `1.2 GiB`."""
    return _scaled(nbytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float) -> str:
    """`8.2 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, unit: str) -> str:
    """`1 file`, `30 layers`, `4 passes`."""
    return f"{number} {plural(unit) if number != 1 else unit}"


def plural(unit: str) -> str:
    """`layers`, `passes`."""
    return f"{unit}es" if unit.endswith("s") else f"{unit}s"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units:
        if value < base or unit == units[-1]:
            break
        value /= base
    digits = 0 if unit == units[0] or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"
