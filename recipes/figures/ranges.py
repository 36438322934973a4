"""What a plan says of artifacts whose bits a stage of the run will choose: what holds for every choice, and the range.

Known before the run are the ways that leave the most bytes, and every candidate everywhere, the fewest among them.
"""

from __future__ import annotations

from collections.abc import Sequence

from compress.recipes.engines.verdicts import Verdict
from compress.recipes.figures.planned import ArtifactPlan


def ranged(largest: Sequence[Sequence[ArtifactPlan]], even: Sequence[Sequence[ArtifactPlan]]) -> list[ArtifactPlan]:
    """Each artifact at its most bytes, of the `largest` ways to choose, with what is known of all, `even` ones as well.

    Every way lists the same artifacts in the same order.
    """
    return [
        _ranged(max(most, key=lambda artifact: artifact.bytes), [*most, *others])
        for most, others in zip(zip(*largest, strict=True), zip(*even, strict=True), strict=True)
    ]


def _ranged(most: ArtifactPlan, ways: Sequence[ArtifactPlan]) -> ArtifactPlan:
    least = min(artifact.bytes for artifact in ways)
    notes = [f"{least:,} to at most {most.bytes:,} bytes, as the run chooses"] if least < most.bytes else []
    names = dict.fromkeys(artifact.files[0].name for artifact in ways)
    if len(names) > 1:
        notes.append(f"named after what the run chooses: {', '.join(names)}")
    always = [note for note in most.notes if all(note in artifact.notes for artifact in ways)]
    notes += [f"with the most bits, {note}" for note in most.notes if note not in always]
    told = [line for line in most.told if line in always]
    targets = [_of_every_way(found, [way.targets[at] for way in ways]) for at, found in enumerate(most.targets)]
    return most.model_copy(update={"notes": [*always, *notes], "told": told, "targets": targets})


def _of_every_way(found: Verdict, ways: Sequence[Verdict]) -> Verdict:
    """What stands of a verdict; of one that goes by the choice, that it does."""
    if all((way.loads, way.reason, way.note) == (found.loads, found.reason, found.note) for way in ways):
        return found
    refused = next((way.reason for way in ways if not way.loads), None)
    if not any(way.loads for way in ways):
        return found
    why = next(way.note for way in ways if way.note) if refused is None else refused
    changes = {"loads": True, "reason": "", "source": "", "note": f"not of every choice: {why}"}
    return found.model_copy(update=changes)
