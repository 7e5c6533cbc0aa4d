"""Rules without the invariant: networks that check steps, and networks that take them.

Left: which rule leads from s to t, accuracy for every rule and for pairs that are no step, which is all that a network
says at first; R3 (III to U, anywhere) is among the last. Middle: steps that a network takes itself from held-out
theorems: the share that is legal, and the share that leads to a theorem (grey: two strings in three are theorems
anyway). Right: how probable MU is as the next string. After theorems its true probability is 0; after MIII, which is no
theorem and in no training derivation, R3 leads to MU and the rules give 1/3 (dotted). Lines are medians, faint lines
single seeds.
"""

import xarray as xr

from toylab.measures.derivations import ANSWERS, NextSteps, StepChecks
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, band, subplots

NEEDS = ["miu_validity", "miu_derivation"]
COLORS = dict(zip(ANSWERS, (GREY, BLUE, ORANGE, RED, GREEN), strict=True))
THEOREMS = ["MI", "MII", "MIU", "MUI"]


def compute(runs):
    """StepChecks and NextSteps at every checkpoint of the runs of their format, along seed and step."""
    tables = []
    for form, tool in (("validity", StepChecks()), ("derivation", NextSteps((*THEOREMS, "MIII")))):
        rows = [run.map(tool).assign_coords(seed=run.experiment.seed) for run in runs if run.task.format == form]
        tables.append(xr.concat(rows, "seed", join="outer"))
    return xr.merge(tables, join="outer")


def draw(table):
    figure, (checks, steps, mu) = subplots(1, 3, 2.7, sharex=True)
    for answer, color in COLORS.items():
        label = "no step" if answer == "none" else answer
        band(checks, table.sel(answer=answer), "rule_accuracy", color, label)
    for name, color in (("legal", BLUE), ("theorem", PURPLE)):
        band(steps, table, name, color, name)
    steps.axhline(2 / 3, color=GREY, lw=0.8, ls=":")
    theorems = table[["p_mu"]].sel(string=THEOREMS).max("string")
    band(mu, theorems, "p_mu", BLUE, "a theorem (largest)")
    band(mu, table[["p_mu"]].sel(string="MIII"), "p_mu", RED, "MIII")
    mu.axhline(float(table.mu_law.sel(string="MIII").max()), color=RED, lw=0.9, ls=":")
    for ax, title in ((checks, "accuracy by rule"), (steps, "its own steps"), (mu, "P(MU) as the string after")):
        ax.set(title=title, xscale="log", xlabel="step", xlim=(8, int(table.step.max())))
        ax.legend(fontsize=7)
    mu.set_ylim(-0.01, 0.42)
    for ax in (checks, steps):
        ax.set_ylim(-0.02, 1.02)
    return figure
