"""What cannot end well is said before anything is computed: of a recipe alone, without its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import AliasChoices

from compress.formats.errors import UsageError
from compress.passes.core.base import ModelPass, Pass
from compress.recipes.gates.limits import FIGURES, MEASURED
from compress.recipes.recipe import Recipe
from compress.recipes.stages import writes

_EXPORT = "`- export: {dialect: …}` (`compress dialects` lists them)"


def foresee(recipe: Recipe, note: Callable[[str], None]) -> None:
    """Raise UsageError for a run that has no result, or that would be judged by what it does not measure."""
    _refuse_work_for_nothing(recipe)
    _refuse_gates_without_figures(recipe)
    _refuse_idle_repair(recipe)
    _refuse_text_that_was_seen(recipe)
    _refuse_change_that_is_wanted(recipe)
    if not any(writes(step) for step in recipe.passes):
        note("nothing is written: the recipe has no export")
    for said in _other_words(recipe):
        note(said)


def _other_words(recipe: Recipe) -> Iterator[str]:
    """What an option was called that has another name here."""
    for number, step in enumerate(recipe.passes):
        for option, field in type(step).model_fields.items():
            known = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
            for word in known:
                if word != option and word in recipe.origin.options(number):
                    line = recipe.origin.line("passes", number, step.name, str(word))
                    yield f"{line}{step.name}: `{word}` is called `{option}` here, and taken for it"


def _refuse_work_for_nothing(recipe: Recipe) -> None:
    """Whatever changes the model must be written or measured after it."""
    steps = recipe.passes
    if not any(writes(step) or _measures(step) for step in steps):
        raise UsageError("the recipe has no result: no pass writes the model, and none measures it", f"add {_EXPORT}")
    seen = max(number for number, step in enumerate(steps) if writes(step) or _measures(step))
    lost = next((number for number in range(seen + 1, len(steps)) if steps[number].changes), None)
    if lost is not None:
        last = steps[_last_change(recipe)].name
        written = [number for number, step in enumerate(steps) if writes(step)]
        raise UsageError(
            f"{recipe.origin.line('passes', lost)}what {steps[lost].name} makes of the model is lost: "
            "no pass after it writes or measures the model",
            f"move {_spelled(recipe, written[-1])} after {last}" if written else f"add {_EXPORT} after {last}",
        )


def _refuse_gates_without_figures(recipe: Recipe) -> None:
    """A gate judges the result: a pass must measure it after all that changes the model."""
    last = _last_change(recipe)
    after = f" after {recipe.passes[last].name}" if last >= 0 else ""
    for gate, figure in MEASURED.items():
        measuring = [number for number, step in enumerate(recipe.passes) if figure in _measures(step)]
        if getattr(recipe.gates, gate) is None or any(number > last for number in measuring):
            continue
        add = f"add `- evaluate: {{data: builtin}}`{after}"
        raise UsageError(
            f"{recipe.origin.line('gates', gate)}gates.{gate}: no pass measures the {figure.replace('_', ' ')}{after}",
            f"move {_spelled(recipe, measuring[-1])}{after}" if measuring else add,
        )


def _refuse_idle_repair(recipe: Recipe) -> None:
    """A repair needs a gate on quality to go by."""
    if recipe.gates.repair and all(getattr(recipe.gates, gate) is None for gate in FIGURES):
        line = recipe.origin.line("gates", "repair")
        raise UsageError(
            f"{line}gates.repair: there is no gate on quality to reach", f"set one of {', '.join(FIGURES)}"
        )


def _refuse_change_that_is_wanted(recipe: Recipe) -> None:
    """A pass that goes on from what others changed stands after one that does."""
    changed = False
    for number, step in enumerate(recipe.passes):
        if step.wants_change and not changed:
            raise UsageError(
                f"{recipe.origin.line('passes', number)}{step.name}: no pass before it changes the model, "
                "so there is nothing to learn from the untouched one",
                "put it behind a pass that changes it, name another `teacher: …`, or learn the text: `alpha: 1`",
            )
        changed = changed or step.changes


def _refuse_text_that_was_seen(recipe: Recipe) -> None:
    """What a model was calibrated or trained on flatters it."""
    seen = {text: step.name for step, _, text in _texts(recipe) if step.alters}
    for step, line, text in _texts(recipe):
        if step.measures and text in seen:
            raise UsageError(
                f"{line}{step.name}: {text} is the text of {seen[text]}, and what the model has seen flatters it",
                "measure on text held out from it: another file or split, or `data: builtin`",
            )


def _texts(recipe: Recipe) -> Iterator[tuple[ModelPass, str, str]]:
    """The texts of the passes, each with its pass and the line of the recipe that names it."""
    for number, step in enumerate(recipe.passes):
        if isinstance(step, ModelPass):
            path = ("passes", number, step.name)
            for place, text in step.texts(recipe.origin.folder_of(*path, "data")).items():
                yield step, recipe.origin.line(*path, *place), text


def _last_change(recipe: Recipe) -> int:
    """The number of the last pass that changes the model; -1 if none does."""
    return max((number for number, step in enumerate(recipe.passes) if step.changes), default=-1)


def _spelled(recipe: Recipe, number: int) -> str:
    """A pass of the recipe, with its line where there is one."""
    line = recipe.origin.line("passes", number).removesuffix(": ")
    return recipe.passes[number].name + (f" ({line})" if line else "")


def _measures(step: Pass) -> frozenset[str]:
    return step.measures if isinstance(step, ModelPass) else frozenset()
