"""Random Othello in numbers, from the rules alone.

Left: a position with the legal moves of the side to move (crosses). Middle: the mean number of legal moves at each ply
and, below it, the exact floor of the loss in nats: no predictor can do better on average. Right: how often the side
whose turn it is must pass, and how often the side to move is not the one that the parity of the ply names: labels by
parity are wrong there.
"""

import numpy as np
import xarray as xr

from toylab.plotting import BLUE, GREEN, GREY, ORANGE, RED, subplots

NEEDS = ["othello_6x6"]
SHOWN = 14  # moves of the position that is drawn


def compute(runs):
    """By ply, over the fixed draw of the first run; and one board."""
    run = runs.runs[0]
    inputs = run.split.all.inputs
    seen, n = run.task.replay(inputs), run.task.n
    going = seen.legal.any(2)
    count = np.maximum(going.sum(0), 1)
    legal = seen.legal.sum(2)
    parity = np.arange(inputs.shape[1]) % 2 == 0  # after move 0 it should be White's turn
    by_ply = {
        "legal_moves": (legal * going).sum(0) / count,
        "floor": (np.log(np.maximum(legal, 1)) * going).sum(0) / count,
        "pass": (seen.passed & going).sum(0) / count,
        "off_parity": ((seen.white != parity) & going).sum(0) / count,
    }
    at = min(SHOWN, inputs.shape[1]) - 1
    board = np.where(seen.legal[0, at], 3, seen.board[0, at]).reshape(n, n)
    variables = {name: ("ply", value) for name, value in by_ply.items()}
    return xr.Dataset(variables | {"board": (("row", "col"), board.astype(np.int32))})


def draw_board(ax, board):
    """Discs and crosses (3) on a grid; rows from the top."""
    n = len(board)
    ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
    ax.set_xticks(range(n), list("abcdefgh"[:n]))
    ax.set_yticks(range(n), [str(i + 1) for i in range(n)])
    ax.grid(False)
    ax.set_facecolor("#DDE8DD")
    for edge in np.arange(n - 1) + 0.5:
        ax.axhline(edge, color="white", lw=0.8, zorder=0)
        ax.axvline(edge, color="white", lw=0.8, zorder=0)
    for value, face in ((1, "black"), (2, "white")):
        rows, cols = np.nonzero(board == value)
        ax.scatter(cols, rows, s=2600 / n**2, c=face, edgecolor="black", linewidth=0.6)
    rows, cols = np.nonzero(board == 3)
    ax.scatter(cols, rows, s=900 / n**2, marker="x", color=RED)


def draw(table):
    figure, (board, moves, passes) = subplots(1, 3, 2.6)
    draw_board(board, table.board.values)
    board.set_title("a position")
    moves.plot(table.legal_moves, color=BLUE, label="legal moves")
    moves.plot(table.floor, color=GREEN, label="floor (nats)")
    moves.set(title="choices by ply", xlabel="ply", ylim=(0, None))
    moves.legend(fontsize=7)
    passes.plot(table["pass"], color=ORANGE, label="a pass")
    passes.plot(table.off_parity, color=GREY, label="parity is wrong")
    passes.set(title="share of positions", xlabel="ply", ylim=(0, None))
    passes.legend(fontsize=7)
    return figure
