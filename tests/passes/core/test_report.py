"""A piece of work within a larger one."""

from __future__ import annotations

from compress.passes.core.report import Reporter, Within


class Heard(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.said.append(f"start {title}")

    def tell(self, label: str) -> None:
        self.said.append(label)

    def advance(self, label: str = "", **figures: float) -> None:
        self.said.append(f"{label} {figures}")

    def finish(self) -> None:
        self.said.append("finish")

    def note(self, message: str) -> None:
        self.said.append(message)


def test_its_steps_are_steps_of_the_larger_one() -> None:
    larger = Heard()
    part = Within(larger, "layer 3")
    part.start("train", 2, "step")
    part.tell("measuring")
    part.advance("step 1", loss=0.5)
    part.note("a note")
    part.finish()
    assert larger.said == ["layer 3: measuring", "layer 3: step 1 {'loss': 0.5}", "a note"]
