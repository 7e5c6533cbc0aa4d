"""MU-GPT watched: a transformer memorises 15 % of the MIU strings, then finds that #I mod 3 decides; what of MU?

Top left: accuracy on the training strings (blue) is perfect before accuracy on the others (orange) leaves chance, by
little on some seeds and by thousands of steps on others. Top right: P(theorem) of MU and relatives without any I, which
nobody ever shows the network, and of MIII, which the seed puts among the training strings or not. A network that has
the invariant denies all four; one that knows the answers for 1, 2, 3, ... I's and no rule says anything about none.
Bottom left: restricted loss (only what of the logits depends on the residue; held-out strings) falls, and excluded loss
(all but that; training strings) turns upwards, as the code replaces the table. Bottom right: the code itself, Fourier
power at 1/3, and a residue probe against the same probe on the input tokens (dotted). Lines are medians, faint lines
single seeds.
"""

import xarray as xr

from toylab.measures.basic import Loss
from toylab.measures.residues import ResidueCode, ResidueLosses, TheoremBelief
from toylab.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, band, subplots

NEEDS = ["miu_grok"]
STRINGS = {"MU": RED, "MUU": ORANGE, "MUUU": PURPLE, "MIII": GREEN}


def compute(runs):
    """Everything above at every checkpoint of every seed."""
    tables = [runs.map(m) for m in (Loss(), ResidueLosses(3), TheoremBelief(tuple(STRINGS), n=50))]
    code = runs.map(ResidueCode(3, site="mlp_out"))
    keep = ["period_share", "probe_accuracy", "input_accuracy", "majority"]
    return xr.merge([tables[0], tables[1], tables[2][["p_theorem"]], code[keep]])


def draw(table):
    figure, axes = subplots(2, 2, 4.8, sharex=True)
    (accuracy, belief), (losses, code) = axes
    for name, color in (("train", BLUE), ("test", ORANGE)):
        band(accuracy, table, f"{name}_accuracy", color, name)
        band(losses, table, f"{name}_loss", color, name)
    for name, color, label in (("restricted_test_loss", GREEN, "restricted"), ("excluded_loss", RED, "excluded")):
        band(losses, table, name, color, label)
    for string, color in STRINGS.items():
        band(belief, table.sel(string=string), "p_theorem", color, string)
    band(code, table.sel(period=3), "period_share", PURPLE, "power at 1/3")
    band(code, table, "probe_accuracy", BLUE, "probe")
    code.axhline(float(table.input_accuracy.median()), color=BLUE, lw=0.9, ls=":", label="probe on input")
    accuracy.axhline(0.5, color=GREY, lw=0.8, ls=":")
    last = int(table.step.max())
    accuracy.set(title="accuracy", ylim=(-0.02, 1.05), xscale="symlog", xlim=(0, last))
    belief.set(title="P(theorem)", ylim=(-0.02, 1.05))
    losses.set(title="losses (nats)", yscale="log", xlabel="step", ylim=(1e-3, 100))
    code.set(title="code for #I mod 3 in the MLP's output", xlabel="step", ylim=(-0.02, 1.05))
    for ax in (accuracy, belief, losses, code):
        ax.legend(fontsize=8)
    return figure
