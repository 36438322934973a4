"""A view is the checkpoint that it shows, but for what a subclass says."""

from dataclasses import replace

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.views.fit import Decoded, decoded_spec
from compress.formats.views.matrices import Matrices, Restored
from compress.formats.views.untied import Untied
from compress.formats.views.view import View
from compress.passes.core.working_model import WorkingModel


@pytest.fixture
def model(tiny_llama):
    return open_checkpoint(tiny_llama)


def test_a_view_forwards_all_but_its_spec(model):
    spec = replace(model.spec, config={"model_type": "other"})
    view = View(model, spec)
    assert view.spec is spec and view.inner is model
    assert (view.path, view.dialect, view.nbytes()) == (model.path, model.dialect, model.nbytes())
    assert view.files() == model.files()
    name = next(iter(model.spec.tensors))
    assert torch.equal(view.read(name), model.read(name))


@pytest.mark.parametrize(
    "skin",
    [
        lambda model: Decoded(model, decoded_spec(model.spec)),
        lambda model: Matrices(model, {}),
        Restored,
        Untied,
        WorkingModel,
    ],
    ids=["decoded", "matrices", "restored", "untied", "working"],
)
def test_every_skin_is_a_view(model, skin):
    view = skin(model)
    assert isinstance(view, View)
    assert (view.path, view.nbytes(), view.files()) == (model.path, model.nbytes(), model.files())
