"""What a finished run has to tell: artifacts, quality, times, missed gates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from compress.formats import open_checkpoint
from compress.formats.files.storage import parse_json, read_bytes, write_bytes, write_json
from compress.kernels.fallbacks import counted
from compress.passes.artifact.card import CARD, model_card
from compress.passes.artifact.inventory import bits_of, format_name
from compress.passes.artifact.record import MANIFEST
from compress.passes.artifact.statement import write_statement
from compress.passes.artifact.write import Artifact
from compress.passes.choice.prices import Price
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.recipes.engines.verdicts import loading_lines
from compress.recipes.figures.budgets import peak_here
from compress.recipes.figures.cards import peak_on
from compress.recipes.figures.profile import Profile
from compress.recipes.gates.limits import Judged, figures_of, judged
from compress.recipes.recipe import Recipe


class Ends(BaseModel):
    """What lies outside the decoder layers: the embedding, and the head where it has weights of its own."""

    bytes: int
    format: str


class ArtifactReport(Artifact):
    """One artifact: where it is, how large, and the one line that loads it in each engine that can."""

    loads: dict[str, str]
    ends: Ends | None = None


class Metrics(BaseModel):
    """What `evaluate` measured; None without it."""

    perplexity: float | None = None
    reference_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    acceptance: float | None = None
    kl_p999: float | None = None


class PassReport(BaseModel):
    """One pass, or the passes that shared a sweep; `seconds` of every process that had a part in it.

    `metrics` are those that it measured: a recipe may evaluate after every step.
    """

    name: str
    seconds: float
    metrics: Metrics | None = None


class RunReport(BaseModel):
    """What `compress run --json` prints. `missed` names the gates that were missed, `notes` what else to know.

    `peak_ram_bytes` are the most that this process has had, whatever it did before the run as well.
    `seconds` are those of all processes that had a part in the run; `bits` are those, or the types, that a stage chose.
    `fallbacks` says of what ran otherwise than it might, a kernel as plain torch for one, how often in the last call.
    `gates` are all that were set, `repairs` what was done for them, `prices` what a trial found quantized weights cost.
    """

    model: str
    parameters: int
    source_bytes: int
    artifacts: list[ArtifactReport]
    metrics: Metrics
    passes: list[PassReport]
    missed: list[str]
    seconds: float
    peak_ram_bytes: int
    peak_vram_bytes: int
    notes: list[str] = []
    bits: dict[str, int | str] = {}
    gates: list[Judged] = []
    repairs: list[str] = []
    prices: list[Price] = []
    profile: Profile | None = None
    fallbacks: dict[str, int] = {}


class Reported(Committed):
    """The run is complete. Its key is of all stages and gates together."""

    report: RunReport


def metrics_of(left: Outcome) -> Metrics | None:
    """What was measured, if anything was."""
    return Metrics(**{name: getattr(left.scores, name) for name in Metrics.model_fields}) if left.scores else None


def make_report(recipe: Recipe, state: Run, artifacts: Sequence[Artifact], passes: list[PassReport]) -> RunReport:
    """The report of a run that is complete; paths are folders in the output directory."""
    metrics = metrics_of(state.left) or Metrics()
    gates = judged(recipe.gates, figures_of(metrics.model_dump()), [artifact.bytes for artifact in artifacts])
    return RunReport(
        model=recipe.model,
        parameters=state.source.spec.parameters,
        source_bytes=state.source.nbytes(),
        artifacts=[_report_of(found, state) for found in artifacts],
        metrics=metrics,
        passes=passes,
        missed=[str(gate) for gate in gates if not gate.holds],
        seconds=sum(step.seconds for step in passes),
        peak_ram_bytes=peak_here(),
        peak_vram_bytes=peak_on(state.device),
        bits=dict(state.left.bits or {}),
        gates=gates,
        prices=state.left.manifest.get("prices", []),
        fallbacks=counted(),
    )


def _report_of(artifact: Artifact, state: Run) -> ArtifactReport:
    written = open_checkpoint(state.output / artifact.path)
    ends = [written.spec.tensors.get(f"{name}.weight") for name in state.skeleton.anatomy.ends]
    held = [spec for spec in ends if spec is not None]
    nbytes = sum(round(spec.size * bits_of(spec) / 8) for spec in held)
    formats = " and ".join(dict.fromkeys(format_name(spec) for spec in held))
    return ArtifactReport(
        **artifact.model_dump(), loads=loading_lines(written), ends=Ends(bytes=nbytes, format=formats) if held else None
    )


def mark(report: RunReport, output: Path) -> None:
    """Artifacts that miss a gate are kept, and say so; those that miss none say nothing of the kind."""
    for artifact in report.artifacts:
        directory = output / artifact.path
        manifest = parse_json(read_bytes(directory / MANIFEST, 1 << 30), directory / MANIFEST)
        marked = {key: value for key, value in manifest.items() if key != "missed_gates"}
        marked |= {"missed_gates": report.missed} if report.missed else {}
        card = model_card(marked).encode()
        marked["files"] = {**manifest["files"], CARD: hashlib.sha256(card).hexdigest()}
        if marked != manifest:
            write_bytes(directory / CARD, card)
            write_json(directory / MANIFEST, marked)
        write_statement(directory, marked)  # whatever a run that was cut off had come to


def with_paths(report: RunReport, output: Path) -> RunReport:
    """The report with paths that a shell can use where it stands."""
    artifacts = []
    for artifact in report.artifacts:
        path = str(output / artifact.path)
        loads = {engine: line.replace("{path}", path) for engine, line in artifact.loads.items()}
        artifacts.append(artifact.model_copy(update={"path": path, "loads": loads}))
    return report.model_copy(update={"artifacts": artifacts})
