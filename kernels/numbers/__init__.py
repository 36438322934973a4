"""What do codes mean? One file a number format; each is found by its file."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.kernels.qtensor import NumberFormat


def number_formats() -> list[type[NumberFormat]]:
    """Every number format that a module of this package defines, wherever in it; there is no list to keep."""
    from compress.kernels.qtensor import NumberFormat

    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return [kind for kind in NumberFormat.__subclasses__() if kind.__module__.startswith(f"{__name__}.")]
