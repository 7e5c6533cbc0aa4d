"""Shapes in annotations are checked at run time, one thread per worker, figures without a screen."""

import os

os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

# Before the first import of toylab: every jaxtyping annotation in it is checked by beartype from here on.
install_import_hook("toylab", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def global_rng_untouched():
    """Fails a test during which anything drew from torch's global generator; modules opt in with `usefixtures`."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "something drew from the global random generator"
