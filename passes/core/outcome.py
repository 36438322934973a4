"""What a stage leaves for those after it, beside the model that it changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from compress.formats.gguf.importance.modules import Energy
from compress.passes.core.base import Rung
from compress.passes.forward.scores import Scores
from compress.passes.model.sequences import Sequences

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """`calibration`: the sequences to go by, or `energies` of inputs by module, in place of them.

    `bits` or types, `shares` of zeros: chosen by module name; `scores`: of the model.

    `authors` are the passes that rewrote a tensor, joined by +; `reports` what there is to say of a rewritten
    module; `manifest` is what artifacts say of the stage. What a stage does not speak of is None, or empty. `called`:
    where it gave tensors other names, what each was called before; what was called otherwise is gone.
    """

    calibration: Sequences | None = None
    energies: Mapping[str, Energy] | None = None
    bits: Mapping[str, Rung] | None = None
    shares: Mapping[str, float] | None = None
    scores: Scores | None = None
    authors: Mapping[str, str] = field(default_factory=dict)
    reports: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    called: Mapping[str, str] | None = None

    def then(self, later: Outcome) -> Outcome:
        """This, and what a later stage leaves: where both speak, the later one holds."""
        if later.called is not None:
            return self._renamed(later.called).then(replace(later, called=None))
        calibrated = later if later.calibration is not None or later.energies is not None else self
        return Outcome(
            calibration=calibrated.calibration,
            energies=calibrated.energies,
            bits=self.bits if later.bits is None else later.bits,
            shares=self.shares if later.shares is None else later.shares,
            scores=self.scores if later.scores is None else later.scores,
            authors={**self.authors, **later.authors},
            reports={**self.reports, **later.reports},
            manifest={**self.manifest, **later.manifest},
        )

    def _renamed(self, called: Mapping[str, str]) -> Outcome:
        modules = {new.removesuffix(".weight"): old.removesuffix(".weight") for new, old in called.items()}
        return replace(
            self,
            energies=None if self.energies is None else _under(modules, self.energies),
            bits=None if self.bits is None else _under(modules, self.bits),
            shares=None if self.shares is None else _under(modules, self.shares),
            authors=_under(called, self.authors),
            reports=_under(modules, self.reports),
        )


def _under(names: Mapping[str, str], values: Mapping[str, T]) -> dict[str, T]:
    return {new: values[old] for new, old in names.items() if old in values}
