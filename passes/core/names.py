"""Which tensor of a checkpoint fills which parameter of transformers' model: some names changed over the years."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming


def tensor_names(model: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """Parameter name → tensor name, for the `stored` tensors; asks transformers' own table of renamings."""
    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    names = {}
    for name in stored:
        parameter = name
        for renaming in renamings:
            parameter, _ = renaming.rename_source_key(parameter)
        names[parameter] = name
    return names
