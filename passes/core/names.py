"""Which tensor of a checkpoint fills which parameter of transformers' model: some names changed over the years."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming


def tensor_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Parameter name → tensor name, for the `stored` tensors; asks transformers' own table of renamings.

    Files of a model without its head leave out the name of what the head sits on: `h.0…` for `transformer.h.0…`.
    """
    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    renamed = {}
    for name in stored:
        parameter = name
        for renaming in renamings:
            parameter, _ = renaming.rename_source_key(parameter)
        renamed[parameter] = name
    prefix = f"{model.base_model_prefix}."
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if any(name.startswith(prefix) for name in renamed):
        return renamed
    return {name if name in known else f"{prefix}{name}": stored_name for name, stored_name in renamed.items()}
