"""What a plan says: stages, files to the byte, memory, time, what missed gates may cost."""

from __future__ import annotations

from pydantic import BaseModel

from compress.recipes.engines.verdicts import Verdict


class StagePlan(BaseModel):
    """One stage: its passes, how often it forwards the calibration sequences through each layer, what it takes.

    `disk_bytes` lie in the work folder meanwhile, at most, beside `kept_bytes`, which stages leave there. `processes`
    take `memory_bytes` each of the same memory; `shared`: all of the run do it together, else one does; `sharded`: they
    hold the model together. `notes` say what else changes.
    """

    passes: list[str]
    tensors: int
    forwards: int
    seconds: float
    memory_bytes: int
    disk_bytes: int
    kept_bytes: int = 0
    processes: int = 1
    shared: bool = False
    sharded: bool = False
    notes: list[str] = []


class FileSize(BaseModel):
    """A weight file that will be written."""

    name: str
    bytes: int


class ArtifactPlan(BaseModel):
    """An artifact that will be written: exact to the byte. `told` is what the run says of it at its end as well."""

    dialect: str
    path: str
    files: list[FileSize]
    bytes: int
    bits_per_weight: float
    notes: list[str]
    targets: list[Verdict]
    told: list[str] = []


class RepairPlan(BaseModel):
    """What missed gates may cost at most: so many rounds more of `passes`, `seconds` in all, and artifacts' `bytes`."""

    rounds: int
    passes: list[str]
    seconds: float
    bytes: int


class FitRow(BaseModel):
    """One way to fill in what a recipe leaves open: `bytes` of weights and cache, with room; `why` it cannot be."""

    weights: str
    cache: str
    weights_bytes: int = 0
    cache_bytes: int = 0
    bytes: int = 0
    fits: bool = False
    chosen: bool = False
    why: str = ""


class FitPlan(BaseModel):
    """What was chosen to fit `allowed` bytes, and from what, the most faithful first; `told` is for the engine.

    `room` is what the cache that was chosen leaves for weights, in bytes.
    """

    allowed: int
    context: int
    users: int
    rows: list[FitRow]
    told: str = ""
    room: int = 0


class Plan(BaseModel):
    """What a recipe will do. `memory_bytes` and `seconds` are estimates, the bytes of artifacts are exact.

    `disk_bytes` is the most that a stage needs on disk for itself, `folder_bytes` the most that lies in the run's
    folder: what stages have left, artifacts, and that; `repair` comes on top if gates are missed. `processes` are those
    that carry it out.
    """

    model: str
    architecture: str
    parameters: int
    source_bytes: int
    stages: list[StagePlan]
    artifacts: list[ArtifactPlan]
    memory_bytes: int
    disk_bytes: int
    seconds: float
    max_ram: int
    processes: int = 1
    folder_bytes: int = 0
    verdict: str
    repair: RepairPlan | None = None
    fit: FitPlan | None = None

    def division(self) -> str:
        """Which stages all processes do together, in words; empty for one process."""
        if self.processes == 1:
            return ""
        names = [(" + ".join(stage.passes), stage.shared) for stage in self.stages]
        shared, others = (", ".join(name for name, way in names if way is wanted) for wanted in (True, False))
        together = f"{self.processes} processes share {shared}" if shared else "no step is shared"
        return f"{together}; one of them does {others}" if others else together
