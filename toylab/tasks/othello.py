"""Othello moves: predict the next move of a random game from the moves so far (Li et al. 2023, arXiv 2210.13382).

One example by hand, n = 4, squares 0..15 row by row, centre 5, 6, 9, 10. Tokens are 0 = padding and 1..12 = the squares
other than the centre, ascending. The game 1, 0, 11, 2, 4, 8 has tokens 2 1 8 3 4 7; inputs are all tokens but the last,
targets all but the first, and weight is 0 where the target is padding. Nothing says whose move it is: a forced pass
writes no token (here the fourth, sixth or later move may follow one), so colour is not the parity of the ply.

Games are random: each move uniform among the legal ones (`moves`, what public generators do), or each complete game
as likely as any other (`leaves`, possible on 4 x 4, where all 60,060 games are a finite table). The right prediction
and the floor of the loss are known exactly: log |legal| at each position for `moves`.

Came from: othello_engine.py, the rules. Read next: measures/board.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.data import Batch, Latent, Split, generator
from toylab.errors import UserError, one_of, require
from toylab.tasks.othello_engine import (
    NONE,
    Games,
    Replay,
    all_games,
    centre,
    check_size,
    legal_moves,
    mix,
    random_games,
    render,
    replay,
    square_name,
)

SAMPLING = ("moves", "leaves")
# Whose discs are which: by the side that really moves next, by colour, or by the parity of the ply (public labels).
FRAMES = {"board": ("empty", "mine", "theirs"), "colour": ("empty", "black", "white")} | {
    "parity": ("empty", "mine", "theirs")
}
CHANGES = ("flip", "erase", "unnatural")
TRIES = 24  # other orders of the moves that are tried at once for each row


@dataclass(frozen=True, eq=False)
class Edits:
    """Boards with one square changed, and what is legal then: cases for interventions.

    inputs: [case, pos] tokens. at: [case] the position whose board is edited. square: [case].
    before, after: [case, square] classes of the `board` frame (0 empty, 1 mine, 2 theirs).
    legal_before, legal_after: [case, square]; they differ in every case and neither is empty.
    """

    inputs: Int[Tensor, "case pos"]
    at: Int[Tensor, " case"]
    square: Int[Tensor, " case"]
    before: Int[Tensor, "case square"]
    after: Int[Tensor, "case square"]
    legal_before: Bool[Tensor, "case square"]
    legal_after: Bool[Tensor, "case square"]


@dataclass(frozen=True)
class Othello:
    """Random games on an n x n board.

    n:              4, 6 or 8.
    sampling:       "moves" streams games; "leaves" is the finite table of all 4 x 4 games.
    n_test:         games of the fixed draw that is measured on; null with "leaves", which has them all.
    held_out:       share of openings (sequences of `held_out_plies` moves, chosen by hash, the same for all seeds)
                    that are never trained on. The draw has both kinds of games; `unseen` tells which is which.
    """

    n: int
    sampling: str
    n_test: int | None
    held_out: float
    held_out_plies: int

    def __post_init__(self):
        check_size(self.n)
        one_of("sampling", self.sampling, SAMPLING)
        require(
            self.sampling == "moves" or self.n == 4,
            f"sampling=leaves needs every game listed, which only n=4 allows, not n={self.n}; take sampling=moves",
        )
        if self.sampling == "leaves":
            require(self.n_test is None, f"n_test={self.n_test}: sampling=leaves measures on all games; give null")
            require(self.held_out > 0, "held_out=0 leaves sampling=leaves without a test set; 0.2 is usual")
        else:
            n_test = self.n_test or 0
            require(n_test >= 1, f"n_test={self.n_test}: at least 1 game")
            require(
                self.n > 4 or n_test <= len(all_games(4)),
                f"n_test={n_test:,}: there are only {len(all_games(4)):,} different games on 4 x 4; take fewer, or all "
                "of them with sampling=leaves n_test=null",
            )
        require(0 <= self.held_out < 1, f"held_out={self.held_out} is outside [0, 1)")
        require(
            1 <= self.held_out_plies <= self.n**2 - 4,
            f"held_out_plies={self.held_out_plies}: an opening has 1 to {self.n**2 - 4} moves",
        )

    # --- sizes ------------------------------------------------------------------------------------------------------

    @property
    def d_vocab(self) -> int:
        return self.n**2 - 3

    @property
    def n_ctx(self) -> int:
        return self.n**2 - 5

    @property
    def d_out(self) -> int:
        return self.n**2 - 3

    # --- tokens -----------------------------------------------------------------------------------------------------

    @property
    def square_of(self) -> Int[Tensor, " token"]:
        """The square of each token; NONE for padding."""
        return torch.tensor([NONE, *(s for s in range(self.n**2) if s not in centre(self.n))])

    @property
    def token_of(self) -> Int[Tensor, " square"]:
        """The token of each square; 0 for the centre, which is never played."""
        table = torch.zeros(self.n**2, dtype=torch.long)
        table[self.square_of[1:]] = torch.arange(1, self.d_vocab)
        return table

    def encode(self, moves: Int[Tensor, "game ply"]) -> Batch:
        """Games given as squares, NONE after the end, as a batch. Raises UserError at the first illegal move."""
        replay(self.n, moves.numpy())
        return self._batch(moves.numpy())

    def decode(self, inputs: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """Squares of these tokens; NONE for padding."""
        require(
            inputs.ndim == 2 and inputs.shape[1] <= self.n_ctx,
            f"tokens of shape {tuple(inputs.shape)} arrived; a {self.n} x {self.n} game has at most {self.n_ctx} "
            "inputs (the last move is only a target)",
        )
        foreign = inputs[(inputs < 0) | (inputs >= self.d_vocab)]
        require(
            not len(foreign),
            f"token {int(foreign[:1].sum())} arrived; {self.n} x {self.n} has 0 (padding) to {self.d_vocab - 1}",
        )
        return self.square_of[inputs.cpu()]

    def _batch(self, moves: np.ndarray) -> Batch:
        """Squares [game, ply], padded to whole games, as inputs, targets and weight."""
        padded = np.pad(moves, ((0, 0), (0, self.n**2 - 4 - moves.shape[1])), constant_values=NONE)
        tokens = torch.cat([self.token_of, torch.zeros(1, dtype=torch.long)])[torch.from_numpy(padded).long()]
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        example = self.render(inputs[:1])[0] if len(inputs) else ""
        return Batch(inputs, targets, weight=(targets > 0).float(), example=example)

    # --- data -------------------------------------------------------------------------------------------------------

    def games(self, seed: int, first: int, count: int) -> Batch:
        """Games number first .. first + count - 1 of a seed, held out or not; the same whatever else is drawn."""
        return self._batch(random_games(self.n, seed, first, count))

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """n fresh games, none with a held-out opening; with "leaves", rows of the training table with replacement."""
        if self.sampling == "leaves":
            table = _table(self)
            rows = (~self.unseen(table.inputs)).nonzero().squeeze(1)
            return table[rows[torch.randint(len(rows), (n,), generator=generator)]]
        seed, first, kept = _draw_seed(generator), 0, np.zeros((0, self.n**2 - 4), np.int8)
        while len(kept) < n:
            count = int((n - len(kept)) / (1 - self.held_out) * 1.05) + 8
            moves = random_games(self.n, seed, first, count)
            kept = np.concatenate([kept, moves[~self._opening_held_out(moves)]])
            first += count
        return self._batch(kept[:n])

    def split(self, seed: int) -> Split:
        """n_test games, training data being streamed; or the whole table, its held-out openings being the test set."""
        if self.sampling == "leaves":
            table = _table(self)
            unseen = self.unseen(table.inputs)
            return Split(table, (~unseen).nonzero().squeeze(1), unseen.nonzero().squeeze(1))
        assert self.n_test is not None
        batch = self.games(_draw_seed(generator(seed, "split")), 0, self.n_test)
        return Split(batch, None, torch.arange(self.n_test))

    def unseen(self, inputs: Int[Tensor, "batch pos"]) -> Bool[Tensor, " batch"]:
        """Which games have a held-out opening."""
        return torch.from_numpy(self._opening_held_out(self.decode(inputs).numpy()))

    def _opening_held_out(self, moves: np.ndarray) -> np.ndarray:
        state = np.zeros(len(moves), np.uint64)
        for square in moves[:, : self.held_out_plies].T:
            state = mix(state + (square.astype(np.int64) + 2).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        return (state >> np.uint64(11)) * 2.0**-53 < self.held_out

    # --- the truth --------------------------------------------------------------------------------------------------

    def replay(self, inputs: Int[Tensor, "batch pos"]) -> Replay:
        """Everything the rules say after each token. Raises UserError for an illegal sequence, with the board."""
        return replay(self.n, self.decode(inputs).numpy())

    def latents(self, inputs: Int[Tensor, "batch pos"]) -> dict[str, Latent]:
        """After each move, on the squares [batch, pos, n^2] unless said otherwise:

        board:    empty, mine, theirs, seen by the side that really moves next; undefined when the game is over.
        colour:   empty, black, white.
        parity:   mine and theirs as if sides alternated at every ply: wrong after an odd number of passes.
        legal:    may the side to move play here?  flipped: did the last move turn this disc?
        to_move:  [batch, pos] black or white; undefined when the game is over.  ply: [batch, pos] discs placed - 1.

        -1 from the end of the game on. Raises UserError for an illegal sequence.
        """
        return self._latents(self.replay(inputs))

    def _latents(self, seen: Replay) -> dict[str, Latent]:
        played, going = (torch.from_numpy(x) for x in (seen.played, seen.legal.any(-1)))
        colour, white = torch.from_numpy(seen.board).long(), torch.from_numpy(seen.white)
        ply = torch.arange(played.shape[1]).expand_as(played)

        def owned_by(white_moves: Tensor) -> Tensor:  # swap 1 and 2 where White is "mine"
            return torch.where((colour > 0) & white_moves[..., None], 3 - colour, colour)

        def where(known: Tensor, values: Tensor) -> Tensor:
            return torch.where(known[(..., *[None] * (values.ndim - 2))], values, -1)

        squares = {
            "board": Latent(where(going, owned_by(white)), FRAMES["board"]),
            "colour": Latent(where(played, colour), FRAMES["colour"]),
            "parity": Latent(where(played, owned_by(ply % 2 == 0)), FRAMES["parity"]),
            "legal": Latent(where(played, torch.from_numpy(seen.legal).long()), ("illegal", "legal")),
            "flipped": Latent(where(played, torch.from_numpy(seen.flipped).long()), ("held", "flipped")),
        }
        return squares | {
            "to_move": Latent(where(going, white.long()), ("black", "white")),
            "ply": Latent(where(played, ply), tuple(map(str, range(self.n_ctx)))),
        }

    def legal_tokens(self, inputs: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos d_out"]:
        """Which outputs are legal next moves after each token; padding never is."""
        legal = torch.from_numpy(self.replay(inputs).legal)
        return torch.cat([torch.zeros_like(legal[..., :1]), legal[..., self.square_of[1:]]], -1)

    def entropy(self, inputs: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """Nats of uncertainty about the next move after each token: no model has a lower expected loss there.

        Exactly log |legal| for "moves"; from the counts of leaves for "leaves". 0 where the game is over.
        """
        if self.sampling == "moves":
            return self.legal_tokens(inputs).sum(-1).clamp_min(1).double().log()
        codes = _prefix_codes(self.decode(inputs).numpy())
        columns = [h[np.searchsorted(c, codes[:, t])] for t, (c, h) in enumerate(_leaf_entropies()[: codes.shape[1]])]
        return torch.from_numpy(np.stack(columns, 1))

    # --- other boards -----------------------------------------------------------------------------------------------

    def counterfactual(self, batch: Batch, latent: str, generator: torch.Generator) -> Batch:
        """Another history of the same length that leads to another board, with one position asked.

        board: two moves of a prefix are exchanged, or its last move is another; of the tries that are legal the one
               with the fewest changed squares is taken. The target is one of the moves that are then legal.
        legal: the same, and the target is a move that was not legal before.

        Everything after the prefix is padding; weight is 1 at its last move alone. Raises UserError for rows in which
        nothing of the kind was found (games that end at once).
        """
        one_of("latent", latent, ("board", "legal"))

        def changed(old: Replay, new: Replay, last: np.ndarray) -> np.ndarray:
            rows = np.arange(len(last))
            squares = _owned(old, rows, last) != _owned(new, rows, last)
            fresh = new.legal[rows, last] & ~old.legal[rows, last]
            score = squares.sum(1) * (new.legal[rows, last].any(1) if latent == "board" else fresh.any(1))
            return np.where(score > 0, score, np.inf)

        old, new, last, found = self._reordered(batch.inputs, changed, generator, rounds=40)
        if not found.all():
            none = self.render(batch.inputs[~found])[0]
            raise UserError(
                f"no other history that changes `{latent}` was found for {int((~found).sum())} of {len(batch)} games, "
                f"the first of them {none}; leave them out"
            )
        before, after, rows = replay(self.n, old), replay(self.n, new), np.arange(len(last))
        open_ = torch.from_numpy(after.legal[rows, last])
        if latent == "legal":
            open_ = open_ & ~torch.from_numpy(before.legal[rows, last])
        target = self.token_of[torch.multinomial(open_.double(), 1, generator=generator)[:, 0]]
        made = self._batch(new)
        targets, weight = torch.zeros_like(made.targets), torch.zeros(made.targets.shape)
        targets[rows, last], weight[rows, last] = target, 1.0
        return Batch(made.inputs, targets, weight=weight, example=made.example)

    def transpositions(
        self, count: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "pair pos"], Int[Tensor, "pair pos"], Int[Tensor, " pair"]]:
        """(inputs, inputs, position): two orders of moves that lead to the same board with the same side to move.

        Prefixes of random games, two of whose moves are exchanged; padding after the position.
        """

        def same(old: Replay, new: Replay, last: np.ndarray) -> np.ndarray:
            rows = np.arange(len(last))
            equal = (_owned(old, rows, last) == _owned(new, rows, last)).all(1) & new.legal[rows, last].any(1)
            return np.where(equal & (new.white[rows, last] == old.white[rows, last]), 1.0, np.inf)

        parts: list[tuple[np.ndarray, ...]] = []
        while sum(len(part[0]) for part in parts) < count:
            draw = self._batch(random_games(self.n, _draw_seed(generator), 0, 2 * count))
            *parts_of, found = self._reordered(draw.inputs, same, generator, rounds=2)
            parts.append(tuple(x[found] for x in parts_of))
        old, new, last = (np.concatenate(column)[:count] for column in zip(*parts, strict=True))
        return self._batch(old).inputs, self._batch(new).inputs, torch.from_numpy(last)

    def _reordered(
        self,
        inputs: Tensor,
        score: Callable[[Replay, Replay, np.ndarray], np.ndarray],
        generator: torch.Generator,
        rounds: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(moves up to `last`, others, last, found): of TRIES changes of each row's prefix the legal one with the
        lowest finite score; rows without one try another prefix in the next round."""
        moves = self.decode(inputs).numpy()
        lengths = (moves != NONE).sum(1)
        require(bool((lengths >= 4).all()), "a game of fewer than 4 moves arrived; too short to be changed")
        old, new = moves.copy(), moves.copy()
        last, todo = np.zeros(len(moves), np.int64), np.arange(len(moves))
        for _ in range(rounds):
            each = np.repeat(todo, TRIES)
            u = torch.rand(4, len(each), generator=generator, dtype=torch.double).numpy()
            # One prefix length per row and round, at least 4 moves and not the whole game.
            end = np.repeat(3 + (u[0, ::TRIES] * np.maximum(lengths[todo] - 4, 1)).astype(np.int64), TRIES)
            prefix = np.where(np.arange(moves.shape[1]) <= end[:, None], moves[each], NONE)
            tried, rows = prefix.copy(), np.arange(len(each))
            j = 1 + (u[1] * end).astype(np.int64)
            i = (u[2] * j).astype(np.int64)
            tried[rows, i], tried[rows, j] = prefix[rows, j], prefix[rows, i]
            other = u[3] < 0.25  # or another last move
            tried[other] = prefix[other]
            squares = self.square_of[1:].numpy()
            tried[rows[other], end[other]] = squares[(u[1, other] * len(squares)).astype(np.int64)]
            was, now = replay(self.n, prefix), replay(self.n, tried, strict=False)
            ok = now.played[rows, end] & (tried != prefix).any(1) & was.legal[rows, end].any(1)
            value = np.where(ok, score(was, now, end), np.inf).reshape(-1, TRIES)
            best = value.argmin(1) + np.arange(len(todo)) * TRIES
            found = np.isfinite(value.min(1))
            at = todo[found]
            old[at], new[at], last[at] = prefix[best[found]], tried[best[found]], end[best[found]]
            todo = todo[~found]
            if not len(todo):
                break
        return old, new, last, ~np.isin(np.arange(len(moves)), todo)

    def edits(self, count: int, change: str, generator: torch.Generator) -> Edits:
        """Cases for interventions: one square of the board after a random prefix is set to something else.

        flip: a random disc changes colour. erase: a random disc outside the centre is taken away. unnatural: such a
        disc without which another has no path of touching discs to the centre, so that no game has this board. The
        prefix has from 5 moves to half of all, uniformly; cases whose legal set stays, or is empty, are left out (Li
        et al. 2023, section 4; the recipe of their released file). Raises UserError where such cases hardly exist.
        """
        one_of("change", change, CHANGES)
        parts: list[tuple[np.ndarray, ...]] = []
        while sum(len(part[0]) for part in parts) < count:
            require(len(parts) < 200, f"change={change}: too few such boards at n={self.n}; take a larger board")
            parts.append(self._edits(2 * count + 64, change, generator))
        columns = (torch.from_numpy(np.concatenate(column)[:count]) for column in zip(*parts, strict=True))
        moves, at, square, before, after, legal_before, legal_after = columns
        inputs = self._batch(moves.numpy()).inputs
        return Edits(inputs, at, square, before.long(), after.long(), legal_before, legal_after)

    def _edits(self, count: int, change: str, generator: torch.Generator) -> tuple[np.ndarray, ...]:
        moves = random_games(self.n, _draw_seed(generator), 0, count)[:, :-1]
        u = torch.rand(2, count, generator=generator, dtype=torch.double).numpy()
        at = 4 + (u[0] * (self.n**2 // 2 - 6)).astype(np.int64)
        moves = np.where(np.arange(moves.shape[1]) <= at[:, None], moves, NONE)
        seen, rows = replay(self.n, moves), np.arange(count)
        board = _owned(seen, rows, at)
        may = board > 0 if change == "flip" else (board > 0) & ~np.isin(np.arange(self.n**2), centre(self.n))
        # The (floor(u k) + 1)-th of the k squares that may be changed.
        square = (may.cumsum(1) > np.floor(u[1] * may.sum(1))[:, None]).argmax(1)
        after = board.copy()
        after[rows, square] = 3 - board[rows, square] if change == "flip" else 0
        legal, legal_after = seen.legal[rows, at], legal_moves(after == 1, after == 2)
        kept = seen.played[rows, at] & legal.any(1) & legal_after.any(1) & (legal != legal_after).any(1)
        if change == "unnatural":
            kept &= (self._connected(after > 0) != (after > 0)).any(1)
        return tuple(x[kept] for x in (moves, at, square, board, after, legal, legal_after))

    def legal_on(self, board: Int[Tensor, "case square"]) -> Bool[Tensor, "case square"]:
        """Where `mine` may play on boards given as 0 empty, 1 mine, 2 theirs."""
        return torch.from_numpy(legal_moves((board == 1).numpy(), (board == 2).numpy()))

    def follow(
        self, edits: Edits, plies: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "case pos"], Bool[Tensor, "case later move"]]:
        """The edited games played on for some random moves: inputs with these moves, and which squares outside the
        centre are legal after 0 .. plies of them (none once the game is over)."""
        games = Games.at((edits.after == 1).numpy(), (edits.after == 2).numpy(), np.zeros(len(edits.at), bool))
        moves, rows = self.decode(edits.inputs).numpy(), np.arange(len(edits.at))
        legal, u = [games.on_squares(games.legal)], torch.rand(plies, len(moves), generator=generator).numpy()
        for k in range(plies):
            draw = np.pad(u[k], (0, -len(moves) % 64))
            squares, placed = games.choose((draw * 2.0**32).astype(np.uint64))
            moves[rows, edits.at.numpy() + k + 1] = squares[: len(moves)]
            games.place(placed)
            legal.append(games.on_squares(games.legal))
        return self._batch(moves).inputs, torch.from_numpy(np.stack(legal, 1))[..., self.square_of[1:]]

    def _connected(self, occupied: np.ndarray) -> np.ndarray:
        """Discs with a path of touching discs to the centre: bools [case, square]. In a game every disc has one, for
        each is placed beside another and none is ever taken away."""
        n, inside = self.n, np.pad(occupied.reshape(-1, self.n, self.n), ((0, 0), (1, 1), (1, 1)))
        reached = np.zeros_like(inside)
        reached[:, n // 2 : n // 2 + 2, n // 2 : n // 2 + 2] = True
        for _ in range(n * n):
            rows = reached | np.roll(reached, 1, 1) | np.roll(reached, -1, 1)
            grown = (rows | np.roll(rows, 1, 2) | np.roll(rows, -1, 2)) & inside
            if (grown == reached).all():
                break
            reached = grown
        return reached[:, 1:-1, 1:-1].reshape(occupied.shape)

    # --- for people -------------------------------------------------------------------------------------------------

    def render(self, inputs: Int[Tensor, "batch pos"]) -> list[str]:
        """ "b1 a1 d3 c1", columns by letter and rows by number."""
        rows = self.decode(inputs).tolist()
        return [" ".join(square_name(self.n, s) for s in row if s != NONE) or "(no move)" for row in rows]

    def show(self, inputs: Int[Tensor, " pos"]) -> str:
        """The board after these moves as text: X black, O white, * where the side to move may play."""
        moves = self.decode(inputs[None]).numpy()
        last = int((moves != NONE).sum()) - 1
        require(last >= 0, "no move was played; give at least one token")
        seen = replay(self.n, moves)
        return render(seen.board[0, last], seen.legal[0, last])


def _owned(seen: Replay, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[row, square] 0 empty, 1 mine, 2 theirs, by the side that moves next after move `at`."""
    board = seen.board[rows, at]
    return np.where((board > 0) & seen.white[rows, at][:, None], 3 - board, board)


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


@cache
def _table(task: Othello) -> Batch:
    """All 4 x 4 games."""
    return task._batch(all_games(task.n))


def _prefix_codes(moves: np.ndarray) -> np.ndarray:
    """[game, ply]: one integer for the moves up to and including each ply."""
    codes = np.zeros(moves.shape, np.int64)
    code = np.zeros(len(moves), np.int64)
    for t in range(moves.shape[1]):
        code = 17 * code + moves[:, t] + 1
        codes[:, t] = code
    return codes


@cache
def _leaf_entropies() -> list[tuple[np.ndarray, np.ndarray]]:
    """For each ply of 4 x 4 games: (codes of all prefixes, sorted; entropy of the next move, leaves being equal)."""
    codes = _prefix_codes(all_games(4))
    found = []
    for t in range(codes.shape[1] - 1):
        parents, size = np.unique(codes[:, t], return_counts=True)
        children, leaves = np.unique(codes[:, t + 1], return_counts=True)
        parent = np.searchsorted(parents, children // 17)
        p = leaves / size[parent]
        found.append((parents, np.bincount(parent, -p * np.log(p), len(parents))))
    return found
