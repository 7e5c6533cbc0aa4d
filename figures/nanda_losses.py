"""Every seed memorises first and generalises much later, each at its own time (Nanda et al. 2023, figure 2).

Left: training loss (blue) falls at once; held-out loss (orange) first climbs far above that of guessing, log p, and
collapses thousands of steps later. Right: accuracy. One line for each seed: the curves have one shape, but the step at
which held-out accuracy rises differs between seeds by more than any single number could say.
"""

import numpy as np

from toylab.measures.basic import Loss
from toylab.plotting import BLUE, GREY, ORANGE, subplots

NEEDS = ["nanda2023"]


def compute(runs):
    """Loss and accuracy at every checkpoint of every seed."""
    table = runs.map(Loss())[[f"{s}_{what}" for s in ("train", "test") for what in ("loss", "accuracy")]]
    n = runs.runs[0].task.d_out
    return table.assign_attrs(guessing=float(np.log(n)), chance=1 / n)


def draw(table):
    figure, axes = subplots(1, 2, 2.6)
    for ax, what in zip(axes, ("loss", "accuracy"), strict=True):
        for name, color in (("train", BLUE), ("test", ORANGE)):
            for i in range(table.sizes["seed"]):
                one = table.isel(seed=i).dropna("step", subset=[f"{name}_{what}"])
                label = {"train": "training pairs", "test": "held-out pairs"}[name] if i == 0 else None
                ax.plot(one.step, one[f"{name}_{what}"], color=color, lw=1, alpha=0.85, label=label)
        ax.set(xlabel="step", xlim=(0, int(table.step.max())))
    loss, accuracy = axes
    loss.axhline(table.attrs["guessing"], color=GREY, lw=0.8, ls=":")
    loss.text(0.98, table.attrs["guessing"], "guessing", transform=loss.get_yaxis_transform(), ha="right", va="bottom")
    loss.set(title="loss (nats)", yscale="log")
    seeds = table.sizes["seed"]
    accuracy.set(title=f"accuracy, {seeds} seed{'s' * (seeds > 1)}", ylim=(-0.02, 1.05))
    accuracy.legend(loc="center right")
    return figure
