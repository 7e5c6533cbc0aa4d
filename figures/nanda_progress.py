"""Hidden progress: the circuit grows while held-out loss says nothing (Nanda et al. 2023, figure 7).

Top left, one seed: long before held-out loss (orange) falls, the loss with only the key frequencies (restricted, green)
falls and the loss on training pairs without them (excluded, red) rises. Shaded: circuit formation, then clean-up, by
the rule of toylab.interp.phases. Top right: the Fourier spectra of embedding and neuron-logit map become more unequal.
Bottom left: the sum of squared weights falls fastest about clean-up, when the memorised table is dropped. Bottom right:
the steps that bound the phases, for every seed. The order is the finding; the steps differ from seed to seed.
"""

import numpy as np
import xarray as xr

from toylab.interp.phases import locate_phases
from toylab.measures.basic import Loss, WeightNorms
from toylab.measures.fourier import LogitFourier, Spectra
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, subplots

NEEDS = ["nanda2023"]
PHASES = ("memorised", "circuit_from", "cleanup_from", "cleanup_to")
LOSSES = {"train_loss": BLUE, "test_loss": ORANGE, "restricted_loss": GREEN, "excluded_loss": RED}


def compute(runs):
    """Losses, Gini coefficients, norms at every checkpoint, and the phases of each run."""
    table = runs.map(LogitFourier("final"), hindsight=True)[["restricted_loss", "excluded_loss"]]
    table = table.merge(runs.map(Loss())[["train_loss", "test_loss"]])
    table = table.merge(runs.map(Spectra())[["embed_gini", "W_L_gini"]]).merge(
        runs.map(WeightNorms())[["sum_sq_weights"]]
    )
    found = []
    for i in range(table.sizes["seed"]):
        one = table.isel(seed=i).dropna("step", subset=["test_loss"])
        phases = locate_phases(one.step.values, *(one[name].values for name in LOSSES))
        found.append([getattr(phases, name) for name in PHASES])
    phases = xr.DataArray(np.array(found, float), dims=("seed", "phase"), coords={"phase": list(PHASES)})
    return table.assign(phase_step=phases)


def draw(table):
    figure, axes = subplots(2, 2, 4.8)
    (losses, ginis), (norms, strip) = axes
    for i in reversed(range(table.sizes["seed"])):
        one = table.isel(seed=i).dropna("step", subset=["test_loss"])
        style = {"alpha": 1.0, "lw": 1.5} if i == 0 else {"alpha": 0.35, "lw": 0.7}
        if i == 0:
            for name, color in LOSSES.items():
                losses.plot(one.step, one[name], color=color, label=name.removesuffix("_loss"), **style)
        for name, color, label in (("embed_gini", PURPLE, "embedding"), ("W_L_gini", GREEN, "neuron-logit map")):
            ginis.plot(one.step, one[name], color=color, label=label if i == 0 else None, **style)
        norms.plot(one.step, one.sum_sq_weights, color=GREY, **style)
    phases = table.phase_step.isel(seed=0)
    bounds = {name: float(phases.sel(phase=name)) for name in PHASES}
    for ax in (losses, ginis, norms):
        ax.axvspan(bounds["circuit_from"], bounds["cleanup_from"], color=GREEN, alpha=0.1, lw=0)
        ax.axvspan(bounds["cleanup_from"], bounds["cleanup_to"], color=ORANGE, alpha=0.15, lw=0)
        ax.set(xlim=(0, int(table.step.max())), xlabel="step")
    losses.set(yscale="log", title=f"losses (nats), seed {int(table.seed[0])}")
    losses.legend(loc="best", fontsize=8)
    ginis.set(title="Gini coefficient of the Fourier norms", ylim=(0, 1))
    ginis.legend(loc="best", fontsize=8)
    norms.set(title="sum of squared weights", ylim=(0, None))
    colors = dict(zip(PHASES, (BLUE, GREEN, ORANGE, RED), strict=True))
    for name, label in zip(PHASES, ("memorised", "circuit from", "clean-up from", "clean-up to"), strict=True):
        values = np.atleast_1d(table.phase_step.sel(phase=name).values)
        strip.plot(values, np.arange(len(values)), "o", color=colors[name], ms=5, label=label)
    seeds = table.seed.values
    strip.set_yticks(np.arange(len(seeds)), [str(s) for s in seeds])
    strip.set(
        title="phases of every seed",
        xlabel="step",
        ylabel="seed",
        xlim=(0, int(table.step.max())),
        ylim=(-0.7, 1.3 * len(seeds)),
    )
    strip.legend(loc="upper left", ncols=2, fontsize=8)
    return figure
