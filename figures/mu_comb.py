"""Where the residue lives, and where it ends: the finished networks asked about every number of I's.

Left: means of the MLP's output by #I in the plane of the three residues' means, one seed of each format (top: is it a
theorem; bottom: the residue after every symbol); numbers are #I, colours #I mod 3. A counter mod 3 puts all numbers of
one colour on one of three corners. Whether only "a theorem" is asked decides whether residues 1 and 2 need corners of
their own. Right: P(theorem) against #I, for strings of trained lengths (dots) and longer ones (crosses), and for no I
at all (rings), which the table never shows. The comb of period 3 is right where it stands at 0 for multiples of 3 and
at 1 elsewhere (grey). Faint marks are single seeds.
"""

import numpy as np
import torch
import xarray as xr

from toylab.data import generator
from toylab.measures.residues import ResidueCode
from toylab.plotting import BLUE, GREY, ORANGE, RED, subplots
from toylab.tasks.miu_system import draw as draw_bodies
from toylab.tasks.miu_system import to_text

NEEDS = ["miu_grok", "miu_prefix"]
KINDS = ("trained lengths", "longer")
N = 1500


def comb(run):
    """[kind, count] mean P(theorem) of the finished network by number of I's; nan where no string has it."""
    task, model, g = run.task, run.final.model, generator(0, "comb")
    low, high = task.lengths
    found = np.full((2, task.longest + 1), np.nan)
    for kind, (first, last) in enumerate(((low, high), (high + 1, task.longest))):
        sizes = torch.randint(first, last + 1, (N,), generator=g)
        shares = torch.rand(N, generator=g)  # all numbers of I's, not only those near half
        texts = []
        for p in (0.1, 0.3, 0.5, 0.7, 0.9):
            chosen = (shares * 5).long() == round((p - 0.1) * 5)
            texts += to_text(draw_bodies(sizes[chosen], task.longest, g, None, p))
        texts += ["U" * n for n in range(first, last + 1)]
        batch = task.ask(["M" + text for text in texts])
        with torch.no_grad():
            p_theorem = task.belief(model(batch.inputs, read=batch.read), batch.inputs).numpy()
        counts = np.array([text.count("I") for text in texts])
        for c in np.unique(counts):
            found[kind, c] = p_theorem[counts == c].mean()
    return found


def compute(runs):
    """plane [format, count, axis] of the first seed of each format, p_theorem [format, seed, kind, count]."""
    formats = ("classify", "prefix")
    mine = {f: [run for run in runs if run.task.format == f] for f in formats}
    counts = max(run.task.longest for run in runs) + 1
    seeds = max(len(m) for m in mine.values())
    plane = np.full((2, counts, 2), np.nan)
    p_theorem = np.full((2, seeds, 2, counts), np.nan)
    for i, f in enumerate(formats):
        for j, run in enumerate(mine[f]):
            found = comb(run)
            p_theorem[i, j, :, : found.shape[1]] = found
        if mine[f]:
            code = ResidueCode(3, site="mlp_out")(mine[f][0].final)["plane"].values
            plane[i, : len(code)] = code
    return xr.Dataset(
        {
            "plane": (("format", "count", "axis"), plane),
            "p_theorem": (("format", "seed", "kind", "count"), p_theorem),
        },
        {"format": list(formats), "kind": list(KINDS), "count": np.arange(counts)},
    )


def draw(table):
    figure, axes = subplots(2, 2, 5.2, width_ratios=(1, 1.6))
    colors = (RED, BLUE, ORANGE)
    count = table["count"].values
    for (plane, comb), name in zip(axes, table.format.values, strict=True):
        one = table.sel(format=name)
        x, y = one.plane.values.T
        for c in count[np.isfinite(x)]:
            plane.plot(x[c], y[c], "o", color=colors[c % 3], ms=12, alpha=0.35)
            plane.text(x[c], y[c], str(c), ha="center", va="center", fontsize=7)
        plane.set(title=f"{name}: means by #I", xticks=[], yticks=[])
        plane.set_aspect("equal", adjustable="datalim")
        plane.margins(0.15)
        comb.plot(count, count % 3 != 0, color=GREY, lw=0.8, alpha=0.6, zorder=0)
        for kind, mark, shift in (("trained lengths", "o", -0.1), ("longer", "x", 0.1)):
            values = one.p_theorem.sel(kind=kind).values
            for row in values:
                comb.plot(count + shift, row, mark, color=GREY, ms=3, alpha=0.4)
            with np.errstate(all="ignore"):
                seen = np.isfinite(values).any(0)
            median = np.nanmedian(values[:, seen], 0)
            comb.plot(count[seen] + shift, median, mark, color=BLUE if mark == "o" else ORANGE, ms=5, label=kind)
            if mark == "o":
                comb.plot([shift], median[:1], "o", ms=12, mfc="none", mec=RED, label="no I: MU, MUU, ...")
        comb.set(title=f"{name}: P(theorem) by #I", ylim=(-0.05, 1.05), xlabel="#I")
        comb.legend(fontsize=7, loc="center right")
    return figure
