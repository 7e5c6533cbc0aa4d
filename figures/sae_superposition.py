"""Dictionaries follow the true features of a toy model while these turn.

80 features in 20 dimensions; two sparse autoencoders (80 latents, 3 on) are trained on the hidden layer at each of 14
checkpoints. Top: held-out loss; the dimensionality of every feature, which settles at 20/80, and D*.
Middle left: recovery of the directions that the features have AT THAT STEP. It is far above chance from the first step:
random directions are a dictionary too, and sparse inputs show it. Training adds little to that; what it changes is
where the features are. Middle right: matched cosine with the finished network's dictionary (of the other seed), beside
the cosine of the true directions with their own final ones.
Bottom: so the dictionaries, without knowing the features, tell when these came within .9 of their final directions.
"""

import torch
import torch.nn.functional as F

from toylab.interp.sae.through import appeared, follow, other_seeds
from toylab.interp.sae.topk import TopK
from toylab.interp.sae.training import SAETraining
from toylab.measures.basic import Loss
from toylab.measures.dictionaries import RecoveredFeatures
from toylab.measures.superposition import Geometry
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, subplots

NEEDS = ["tms_dictionaries"]
MEASURE = RecoveredFeatures(
    "hidden",
    TopK(d_sae=80, k=3, lr=3e-3),
    SAETraining(steps=1500, batch_size=1024, lr_warmup=100, dead_after=200),
    hindsight=True,
)
COUNT = 13
NEAR = 0.9  # a cosine, of what counts as there


def compute(runs):
    """Loss and geometry at every checkpoint of the first run (dim step); dictionaries at some (dim checkpoint)."""
    run = next(iter(runs))
    table = run.map(Geometry())[["dimensionality", "dims_per_feature"]].merge(run.map(Loss())[["test_loss"]])
    found = run.map(MEASURE, f"log:{COUNT}", run.reference(), progress=True).rename(step="checkpoint")
    W, truth = (torch.from_numpy(found[name].values) for name in ("W_dec", "feature_direction"))
    own = F.cosine_similarity(truth, truth[-1:], dim=-1)  # [checkpoint, feature]
    matched = follow(W)
    found = found.drop_vars(["W_dec", "feature_direction"]).assign(
        truth_cosine=("checkpoint", own.mean(1)),
        truth_there=("checkpoint", _there(own[:, None])),
        latents_there=("checkpoint", _there(other_seeds(matched.to_final))),
        truth_next=("move", F.cosine_similarity(truth[:-1], truth[1:], dim=-1).mean(1)),
        next_cosine=("move", other_seeds(matched.to_next).mean((1, 2))),
    )
    return table.merge(found)


def _there(to_final):
    """[step]: the share of all that is near its final direction from this step on."""
    first, steps = appeared(to_final, NEAR), torch.arange(len(to_final))
    return ((first >= 0) & (first <= steps[:, None, None])).double().mean((1, 2))


def draw(table):
    figure, axes = subplots(3, 2, 6.3, sharex=True)
    (loss, geometry), (recovery, agreement), (born, moves) = axes
    loss.plot(table.step, table.test_loss, color=GREY)
    loss.set(title="held-out loss", ylim=(0, None))
    geometry.plot(table.step, table.dimensionality, color=BLUE, lw=0.4, alpha=0.5)
    geometry.plot(table.step, table.dims_per_feature, color="black", label="D* = dimensions / |W|²")
    geometry.plot([], [], color=BLUE, lw=0.8, label="D of each feature")
    geometry.set(title="dimensionality", yscale="log", ylim=(0.08, 6))
    geometry.set_yticks([0.1, 0.25, 1, 5], ["0.1", "1/4", "1", "5"])
    geometry.legend(fontsize=7, loc=(0.03, 0.5))

    at = table.checkpoint.values
    for name, color, label in (("mcc", GREEN, "directions: matched |cosine|"), ("f1", ORANGE, "firing: F1")):
        recovery.plot(at, table[name].mean("sae"), "o-", ms=3, color=color, label=label)
        recovery.fill_between(at, table[name].min("sae"), table[name].max("sae"), color=color, alpha=0.2, lw=0)
        chance = table[f"chance_{name}"]
        recovery.plot(at, chance.mean("sae") if "sae" in chance.dims else chance, ":", color=color, lw=1)
    recovery.set(title="recovery of that step's features", ylim=(0, 1.04))
    recovery.legend(fontsize=7, loc=(0.03, 0.12))

    agreement.plot(at, table.truth_cosine, color="black", lw=1.2, label="true directions")
    agreement.plot(at, table.final_cosine, "o-", ms=3, color=ORANGE, label="latents and the other seed's final ones")
    agreement.plot(at, table.final_chance, ":", color=ORANGE, lw=1)
    agreement.set(title="cosine with the final directions", ylim=(0, 1.04))
    agreement.legend(fontsize=7, loc=(0.03, 0.12))

    born.step(at, table.truth_there, color="black", lw=1.2, where="post", label="true directions")
    born.step(at, table.latents_there, color=ORANGE, where="post", label="latents, asked of the other seed")
    born.set(title=f"share within {NEAR} of the final from here on", ylim=(-0.02, 1.04), xlabel="step")
    born.legend(fontsize=7, loc="upper left")

    moves.plot(at[1:], table.truth_next, color="black", lw=1.2, label="true directions")
    moves.plot(at[1:], table.next_cosine, "o-", ms=3, color=ORANGE, label="latents and the other seed's next ones")
    moves.plot(at, table.seed_cosine, "o-", ms=3, color=BLUE, lw=1, label="two seeds at the same checkpoint")
    moves.plot(at, table.seed_chance, ":", color=BLUE, lw=1)
    moves.set(title="cosine with the checkpoint before", ylim=(0, 1.04), xlabel="step")
    moves.legend(fontsize=7, loc=(0.03, 0.08))
    for ax in axes.flat:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(-0.2, int(at[-1]) * 1.3)
        ax.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
        ax.minorticks_off()
    figure.text(0.995, 0.002, "dotted: chance", ha="right", va="bottom", fontsize=7, color=GREY)
    return figure
