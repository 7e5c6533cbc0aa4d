"""Reading transcoders (Dunefsky et al. 2024, arXiv 2406.11944): which latent of one drives which of the next.

A transcoder is a dictionary asked for another site than it reads, usually an MLP's output from its input:

    stream = Stream.of_snapshot(run.final, "ln2_normalized0", target="mlp_out0")
    train_sae([Standard(d_sae=512, lr=1e-3, l1=1, apply_b_dec_to_input=False)], stream, training)

or with skip=True a linear path beside the latents. Put it into the model with edits.Transcoded.
Known exactly: |x| is the transcoder with 2n latents ReLU(x_i), ReLU(-x_i), both of which write e_i.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from toylab.errors import require
from toylab.interp.sae.dictionary import SAE


def connections(earlier: SAE, later: SAE) -> Float[Tensor, "latent later_latent"]:
    """W_dec of the earlier times W_enc of the later: what one unit of a latent adds to another's pre-activation by the
    residual stream alone, on every input (the norm between them held at 1)."""
    d, e = earlier.W_dec.shape[1], later.W_enc.shape[0]
    require(d == e, f"the earlier dictionary writes {d} entries and the later one reads {e}; they share no space")
    return earlier.W_dec @ later.W_enc


def attribution(earlier: SAE, later: SAE, x: Float[Tensor, "*batch d"], latent: int) -> Float[Tensor, "*batch m"]:
    """f_i(x) times the connection to one later latent: each earlier latent's share of its pre-activation here."""
    require(0 <= latent < later.spec.d_sae, f"there is no latent {latent} among {later.spec.d_sae}")
    return earlier.encode(x) * (earlier.W_dec @ later.W_enc[:, latent])


def from_tokens(sae: SAE, W_E: Float[Tensor, "d_vocab d"]) -> Float[Tensor, "d_vocab d_sae"]:
    """W_E W_enc: what each token's embedding adds to every latent's pre-activation (the de-embedding)."""
    require(W_E.shape[1] == len(sae.W_enc), f"embeddings have {W_E.shape[1]} entries; {sae!r} reads {len(sae.W_enc)}")
    return W_E @ sae.W_enc
