"""What toylab writes SAELens reads, and the other way round, with the same activations; run where it is installed."""

import pytest
import torch
from cases.models import rng

from toylab.interp.sae import saelens
from toylab.interp.sae.batch_topk import BatchTopK
from toylab.interp.sae.gated import Gated
from toylab.interp.sae.jumprelu import JumpReLU
from toylab.interp.sae.standard import Standard
from toylab.interp.sae.stream import Stream
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining, train_sae

sae_lens = pytest.importorskip("sae_lens")
pytestmark = pytest.mark.interop

SIZES = {"d_sae": 12, "lr": 1e-2}
CASES = {
    "standard": Standard(l1=0.3, **SIZES),
    "untied": Standard(l1=0.3, apply_b_dec_to_input=False, **SIZES),
    "gated": Gated(l1=0.3, **SIZES),
    "topk": TopK(k=3, **SIZES),
    "batch topk": BatchTopK(k=2.5, **SIZES),
    "jumprelu": JumpReLU(l0=0.2, bandwidth=0.4, **SIZES),
}


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
@torch.no_grad()
def test_there_and_back(spec, tmp_path):
    x = torch.randn(200, 6, generator=rng(1))
    ours = train_sae([spec], Stream.of_tensor(x), SAETraining(steps=50, batch_size=64)).saes[0]
    saelens.export(ours, tmp_path / "ours")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "ours"), device="cpu")
    torch.testing.assert_close(theirs.encode(x), ours.encode(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
    theirs.save_model(str(tmp_path / "theirs"))
    back = saelens.load(tmp_path / "theirs")
    torch.testing.assert_close(back.encode(x), ours.encode(x), rtol=1e-4, atol=1e-5)
