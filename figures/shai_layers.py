"""Where the belief is, and what gives it away without a network (after Shai et al. 2024, figures 6 and 7).

R^2 of the best affine map onto the belief, from every layer and from all side by side: cross-validated by prefix
(filled) and fitted on all rows as in the paper (open); one pair of lines per run. Dotted: the tokens alone; dashed: the
true law of the next token. For Mess3 the controls are high before any network is trained; for RRXOR only a network can
get there.
"""

import xarray as xr

from toylab.measures.beliefs import BeliefRegression
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, subplots

NEEDS = ["mess3", "rrxor"]


def compute(runs):
    """r2 [run, site] and the controls [run], with the process of each run."""
    rows = [run.map(BeliefRegression("belief", 5), run.steps[-1]).isel(step=0, drop=True) for run in runs]
    return xr.concat(rows, "run").assign_coords(process=("run", [run.task.process.split()[0] for run in runs]))


def draw(table):
    processes = list(dict.fromkeys(table.process.values))
    figure, axes = subplots(1, len(processes), 2.8, sharey=True, squeeze=False)
    for ax, process in zip(axes[0], processes, strict=True):
        mine = table.isel(run=(table.process == process).values)
        for i, (r2, fitted) in enumerate(zip(mine.r2.values, mine.fitted_r2.values, strict=True)):
            ax.plot(range(len(r2)), r2, "o-", color=BLUE, ms=4, label=None if i else "held-out prefixes")
            ax.plot(range(len(r2)), fitted, "o-", color=BLUE, ms=4, mfc="none", lw=0.8, label=None if i else "fitted")
        ax.plot(range(len(r2)), mine.shuffled_r2.values[0], "o-", color=GREY, ms=3, lw=0.8, label="shuffled beliefs")
        for name, color, style in (("input_linear", ORANGE, ":"), ("next_token", GREEN, "--")):
            ax.axhline(float(mine[f"{name}_r2"][0]), color=color, ls=style, label=name.replace("_", " "))
        sites = [str(s).replace("resid_post", "layer ") for s in table.site.values]
        ax.set_xticks(range(len(sites)), sites, rotation=45)
        ax.set(title=process, ylim=(-0.1, 1.05))
    axes[0, 0].set_ylabel("R² of the belief")
    axes[0, 0].legend(loc="center right", fontsize=8)  # the empty half of the first panel
    return figure
