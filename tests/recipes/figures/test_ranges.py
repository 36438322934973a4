"""What is said of artifacts whose bits are chosen in the run."""

from __future__ import annotations

from compress.recipes.engines.verdicts import Verdict
from compress.recipes.figures.planned import ArtifactPlan, FileSize
from compress.recipes.figures.ranges import ranged

LOADS = Verdict(target="vllm", path="out", loads=True, note="slowly")
NOT = Verdict(target="vllm", path="out", loads=False, reason="no 3 bits", source="facts")


def artifact(size: int, name: str = "a.gguf", notes: tuple[str, ...] = (), target: Verdict = LOADS) -> ArtifactPlan:
    files = [FileSize(name=name, bytes=size)]
    return ArtifactPlan(
        dialect="gguf", path="out", files=files, bytes=size, bits_per_weight=size / 10, notes=[*notes], told=[*notes],
        targets=[target],
    )  # fmt: skip


def test_the_most_bytes_and_the_range() -> None:
    (found,) = ranged([[artifact(70)], [artifact(80)]], [[artifact(40)], [artifact(90)]])
    assert (found.bytes, found.bits_per_weight, found.notes) == (
        80,
        8.0,
        ["40 to at most 80 bytes, as the run chooses"],
    )


def test_what_holds_for_every_choice_alone_is_said_as_a_fact() -> None:
    most, even = artifact(80, notes=("all zeros", "2 stay q8_0")), artifact(40, notes=("2 stay q4_0", "all zeros"))
    (found,) = ranged([[most]], [[even], [most]])
    assert found.notes == ["all zeros", "40 to at most 80 bytes, as the run chooses", "with the most bits, 2 stay q8_0"]
    assert found.told == ["all zeros"]


def test_a_name_that_goes_by_the_choice() -> None:
    (found,) = ranged([[artifact(80, "a-Q8_0.gguf")]], [[artifact(40, "a-Q4_0.gguf")], [artifact(80, "a-Q8_0.gguf")]])
    assert "named after what the run chooses: a-Q8_0.gguf, a-Q4_0.gguf" in found.notes


def test_where_nothing_differs_nothing_is_said() -> None:
    assert ranged([[artifact(80, notes=("x",))]], [[artifact(80, notes=("x",))]]) == [artifact(80, notes=("x",))]


def test_a_verdict_that_goes_by_the_choice() -> None:
    (found,) = ranged([[artifact(80)]], [[artifact(40, target=NOT)], [artifact(80)]])
    assert found.targets[0].loads and found.targets[0].note == "not of every choice: no 3 bits"
    (found,) = ranged([[artifact(80, target=NOT)]], [[artifact(40)]])
    assert found.targets[0] == found.targets[0].model_copy(
        update={"loads": True, "reason": "", "source": "", "note": "not of every choice: no 3 bits"}
    )
    (found,) = ranged([[artifact(80, target=NOT)]], [[artifact(40, target=NOT)]])
    assert found.targets == [NOT]
