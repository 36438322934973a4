"""Which tensor of a checkpoint fills which parameter of transformers' model: some names changed over the years."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming


def tensor_names(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Parameter name → tensor name, for the `stored` tensors; asks transformers' own table of renamings.

    Files of a model without its head leave out the name of what the head sits on: `h.0…` for `transformer.h.0…`.
    Matrices of experts that files keep apart and transformers stacks are parts of a product: expert 3's w1 and w3
    are `experts.3.gate_up_proj.0` and `.1` (see passes/model/experts.py).
    """
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    stackings = [step for step in steps if isinstance(step, WeightConverter) and _stacks(step)]
    renamed = {}
    for name in stored:
        parameter = name
        for renaming in renamings:
            parameter, _ = renaming.rename_source_key(parameter)
        parts = (part for stacking in stackings if (part := _part(parameter, stacking)))
        renamed[next(parts, parameter)] = name
    prefix = f"{model.base_model_prefix}."
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if any(name.startswith(prefix) for name in renamed):
        return renamed
    return {name if name in known else f"{prefix}{name}": stored_name for name, stored_name in renamed.items()}


def _stacks(step: WeightConverter) -> bool:
    """Whether it puts experts on top of each other, the parts of each product side by side."""
    merge, *rest = step.operations
    merges = isinstance(merge, MergeModulelist) and merge.dim == 0
    joins = [isinstance(operation, Concatenate) and operation.dim == 1 for operation in rest]
    return merges and joins == [True] * (len(step.source_patterns) > 1)


def _part(parameter: str, stacking: WeightConverter) -> str | None:
    """`…experts.3.w3.weight` → `…experts.3.gate_up_proj.1.weight`; None for what is not stacked."""
    stack, pattern = stacking.rename_source_key(parameter)
    owner, _, product = stack.rpartition(".")
    number, _, rest = parameter.removeprefix(f"{owner}.").partition(".")
    if pattern is None or not parameter.startswith(f"{owner}.") or not number.isdecimal():
        return None
    return f"{owner}.{number}.{product}.{stacking.source_patterns.index(pattern)}.{rest.rpartition('.')[2]}"
