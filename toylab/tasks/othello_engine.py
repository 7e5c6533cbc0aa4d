"""Othello on n x n boards, thousands of games at once.

1. Bit-sliced boards: a plane is an array of 64-bit words that holds one square of 64 games per word. Own and other
   discs are planes [row, col, word]; one logical instruction on a word is one square of 64 games. A run of opponent
   discs behind an own disc grows by run[s] = other[s] & (own[s - d] | run[s - d]), two operations per square and
   direction; a square is legal where a run ends on it.
2. `_turned` views of the board make all eight directions "one row down" or "one row down and one column right or
   left"; `_Sweep` is that recurrence. Flips are the same recurrence from the placed disc back along the runs.
3. To choose among legal squares, planes become one byte per row and game (`_swap_bits`, an 8 x 8 bit transpose). The
   chosen square is the (floor(u N) + 1)-th of the N legal ones.
4. u comes from SplitMix64 of (seed, game, ply), so game number g of a seed is the same in any batch, order or worker.

Rules: Black moves first; a player without a legal move passes and no token is written; the game ends when neither can
move. Squares are n * row + col. Came from: data.py. Read next: othello.py, the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from toylab.errors import UserError, require

SIZES = (4, 6, 8)
BATCH = 32768  # games at once: enough that the cost of a call no longer matters
NONE = -1  # no move: the game is over
Array = np.ndarray


def check_size(n: int) -> None:
    require(
        n in SIZES,
        f"n={n}: the board must be 4, 6 or 8 squares wide (even, so that it has a centre, and at most 64 squares)",
    )


def centre(n: int) -> tuple[int, int, int, int]:
    """The four squares that are filled at the start: White on the first and last, Black on the other two."""
    first = (n // 2 - 1) * (n + 1)
    return first, first + 1, first + n, first + n + 1


def square_name(n: int, square: int) -> str:
    """Column letter and row number, "a1" = square 0, as Othello players write it."""
    return f"{'abcdefgh'[square % n]}{square // n + 1}"


# --- Planes and bytes ------------------------------------------------------------------------------------------------

_MASKS = ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F))


def _swap_bits(x: Array) -> Array:
    """Transpose, in place, each 8 x 8 block of bits of x [row, 8, word]: (plane c, bit b of a byte) <-> (b, c).

    Game number i of a batch is bit i // (8 words) of byte i % (8 words) of a plane; transposed, it is byte i of the
    row, whose bit c is column c. Its own inverse.
    """
    for k, mask in _MASKS:
        pairs = x.reshape(len(x), 4 // k, 2, k, -1)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        t = low >> np.uint64(k)
        t ^= high
        t &= np.uint64(mask)
        high ^= t
        t <<= np.uint64(k)
        low ^= t
    return x


def _bytes(planes: Array) -> Array:
    """[row, game] uint8, bit c for column c, from planes [row, 8, word]."""
    return _swap_bits(planes.copy()).view(np.uint8).reshape(len(planes), -1)


def _planes(rows: Array) -> Array:
    """Planes [row, 8, word] from bytes [row, game]; the number of games is a multiple of 64."""
    return _swap_bits(rows.copy("C").reshape(len(rows), 8, -1).view(np.uint64))


def _flags(word_bits: Array) -> Array:
    """Bools [game] from one bit per game in words."""
    return ((word_bits.view(np.uint8) >> np.arange(8, dtype=np.uint8)[:, None]) & 1).reshape(-1) > 0


def _row_bytes(on: Array) -> Array:
    """Bytes [row, game] from bools [game, square], with empty boards added up to a multiple of 64 games."""
    n = int(on.shape[1] ** 0.5)
    rows = np.packbits(on.reshape(-1, n, n), axis=2, bitorder="little")[..., 0].T
    return np.pad(rows, ((0, 0), (0, -len(on) % 64)))


def _squares(rows: Array) -> Array:
    """Bools [game, square] from bytes [row, game]."""
    n = len(rows)
    bits = np.unpackbits(np.ascontiguousarray(rows.T)[..., None], axis=2, bitorder="little")
    return bits[..., :n].reshape(-1, n * n).view(bool)


def _popcounts(rows: Array) -> Array:
    """Number of bits of each byte: [row, game] uint8. Eight bytes at a time."""
    x = rows.view(np.uint64)
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    return ((x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)).view(np.uint8)


@cache
def _nth_bit() -> Array:
    """[byte * 8 + k]: the position of the (k + 1)-th bit of the byte that is on (0 where there are fewer)."""
    table = np.zeros((256, 8), np.uint8)
    for byte in range(256):
        on = [c for c in range(8) if byte >> c & 1]
        table[byte, : len(on)] = on
    return table.reshape(-1)


# --- The rules -------------------------------------------------------------------------------------------------------


# Columns that one step down leaves and enters: straight, to the right, to the left.
_STEPS = ((slice(None), slice(None)), (slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1)))


def _turned(x: Array) -> tuple[Array, ...]:
    """The board [row, col, word], upside down, transposed, and transposed upside down; views of its memory."""
    return x, x[::-1], x.swapaxes(0, 1), x.swapaxes(0, 1)[::-1]


class _Sweep:
    """Work space for the eight directions of one batch; every step's views are made once and used at every ply.

    runs: [view, row, col, word] for straight down in all four views, and for down-right and down-left in the first
    two (the diagonals of the others would repeat them). What `forward` finds, `backward` follows back.
    """

    def __init__(self, n: int, words: int):
        self.source, self.through = (np.zeros((4, n, n, words), np.uint64) for _ in range(2))
        self.runs, self.back = ([np.zeros((k, n, n, words), np.uint64) for k in (4, 2, 2)] for _ in range(2))
        carry = np.zeros((4, n, words), np.uint64)
        self.down, self.up = [], []
        for run, back, (leave, enter) in zip(self.runs, self.back, _STEPS, strict=True):
            source, through, held = self.source[: len(run)], self.through[: len(run)], carry[: len(run)]
            for r in range(1, n):
                ends = source[:, r - 1], run[:, r - 1], held
                self.down.append((*ends, through[:, r, enter], held[:, leave], run[:, r, enter]))
            for r in range(n - 2, -1, -1):
                ends = source[:, r + 1], back[:, r + 1], held
                self.up.append((*ends, run[:, r, leave], held[:, enter], back[:, r, leave]))
        self.reached, self.flipped = (np.zeros((n, n, words), np.uint64) for _ in range(2))
        parts = list(zip(self.runs, self.back, _STEPS, strict=True))
        self.collect = [
            (board[1:, enter], found[:-1, leave])
            for run, _, (leave, enter) in parts
            for found, board in zip(run, _turned(self.reached), strict=False)
        ]
        self.gather = [pair for _, back, _ in parts for pair in zip(_turned(self.flipped), back, strict=False)]

    def forward(self, own: Array, other: Array) -> Array:
        """Squares that a run of `other` behind an `own` disc ends on, whatever lies there: [row, col, word]."""
        for i, (a, b) in enumerate(zip(_turned(own), _turned(other), strict=True)):
            self.source[i], self.through[i] = a, b
        return self._follow(self.down, self.reached, self.collect)

    def backward(self, placed: Array) -> Array:
        """Discs on runs that end on the placed one, after `forward` has found the runs: [row, col, word]."""
        for i, a in enumerate(_turned(placed)):
            self.source[i] = a
        return self._follow(self.up, self.flipped, self.gather)

    @staticmethod
    def _follow(steps: Sequence[tuple[Array, ...]], total: Array, parts: Sequence[tuple[Array, Array]]) -> Array:
        for source, before, held, through, moved, here in steps:
            np.bitwise_or(source, before, held)
            np.bitwise_and(through, moved, here)
        total[:] = 0
        for board, found in parts:
            np.bitwise_or(board, found, board)
        return total


class Games:
    """A batch of games in progress.

    own, other: planes of the side to move and of its opponent. white: words, the games in which White is to move.
    legal: planes of the legal squares, all 0 where the game is over. passed: words, where the side whose turn it was
    could not move (in `other` now). Games beyond `count` fill up the last word and play along.
    """

    def __init__(self, n: int, count: int):
        check_size(n)
        words = -(-count // 64)
        discs = np.zeros((2, n, 8, words), np.uint64)
        for colour, square in zip((1, 0, 0, 1), centre(n), strict=True):
            discs[colour, square // n, square % n] = ~np.uint64(0)
        self._start(n, count, discs[0], discs[1], np.zeros(words, np.uint64))

    @classmethod
    def at(cls, own: Array, other: Array, white: Array) -> Games:
        """Games that stand at these boards: own and other bools [game, square], white bools [game]."""
        games = cls.__new__(cls)
        rows = np.zeros((1, len(own) + -len(own) % 64), np.uint8)
        rows[0, : len(own)] = white
        n = int(own.shape[1] ** 0.5)
        games._start(n, len(own), _planes(_row_bytes(own)), _planes(_row_bytes(other)), _planes(rows)[0, 0])
        return games

    def _start(self, n: int, count: int, own: Array, other: Array, white: Array) -> None:
        self.n, self.count, self.own, self.other, self.white = n, count, own, other, white
        self._sweep = _Sweep(n, own.shape[2])
        self._narrow: dict[int, _Sweep] = {}
        self._settle()

    def _settle(self) -> None:
        """Find the legal squares; where there are none and the opponent has some, it is the opponent's turn."""
        self.legal = self._legal_for(self.own, self.other, self._sweep)
        self.passed = np.zeros_like(self.white)
        stuck = ~np.bitwise_or.reduce(self.legal, axis=(0, 1))
        some = np.flatnonzero(stuck)  # words with such a game
        if not len(some):
            return
        # Rounded up to a power of two, by repeating words, so that a few work spaces serve.
        some = np.resize(some, 1 << (len(some) - 1).bit_length())
        if len(some) not in self._narrow:
            self._narrow[len(some)] = _Sweep(self.n, len(some))
        sweep, own, other = self._narrow[len(some)], self.own[..., some], self.other[..., some]
        legal = self._legal_for(other, own, sweep) & stuck[some]
        passed = np.bitwise_or.reduce(legal, axis=(0, 1))
        change = (own ^ other) & passed
        self.own[..., some], self.other[..., some] = own ^ change, other ^ change
        self.legal[..., some] |= legal
        self.passed[some] = passed
        self.white ^= self.passed
        for run, theirs in zip(self._sweep.runs, sweep.runs, strict=True):
            ours = run[..., some]
            run[..., some] = ours ^ ((ours ^ theirs) & passed)

    def _legal_for(self, own: Array, other: Array, sweep: _Sweep) -> Array:
        legal, inside = np.zeros_like(own), slice(self.n)
        np.bitwise_or(own, other, out=legal)
        np.invert(legal, out=legal)
        legal[:, inside] &= sweep.forward(own[:, inside], other[:, inside])
        legal[:, self.n :] = 0
        return legal

    def place(self, placed: Array) -> Array:
        """Play the one legal disc of each game in these planes; planes of what it flips. No disc, no change."""
        flipped = np.zeros_like(placed)
        flipped[:, : self.n] = self._sweep.backward(placed[:, : self.n])
        going = np.bitwise_or.reduce(placed, axis=(0, 1))
        own = self.own | placed
        own ^= flipped
        self.other ^= flipped
        self.own = own ^ ((own ^ self.other) & going)
        self.other ^= (own ^ self.other) & going
        self.white ^= going
        self._settle()
        return flipped

    def choose(self, u: Array) -> tuple[Array, Array]:
        """(square [game] or NONE, its planes): the (floor(u N / 2^32) + 1)-th of N legal squares; u < 2^32 uint64."""
        rows = _bytes(self.legal)
        counts = _popcounts(rows)
        up_to = counts.copy()
        words = up_to.view(np.uint64)  # eight bytes at a time: 64 squares never carry into the next
        for r in range(1, self.n):
            words[r] += words[r - 1]
        rank = ((u * up_to[-1]) >> np.uint64(32)).astype(np.uint8)
        above = -(up_to <= rank).view(np.uint8)  # 255 in rows above the chosen one
        inside = above.copy()
        inside[0] ^= 255
        inside[1:] ^= above[:-1]  # 255 in its row; nowhere when no square is legal
        within = rank - np.maximum.reduce(above & up_to, axis=0)
        byte = np.bitwise_or.reduce(inside & rows, axis=0)
        col = _nth_bit().take(byte.astype(np.intp) * 8 + (within & 7))
        row = np.add.reduce(above & 1, axis=0, dtype=np.uint8)
        square = (row * self.n + col).astype(np.int8)
        square[up_to[-1] == 0] = NONE
        return square, _planes(inside & np.left_shift(np.uint8(1), col))

    def one_hot(self, squares: Array) -> Array:
        """Planes with one disc of each game, none where the square is NONE: squares [game] int8."""
        filled = np.pad(squares, (0, -len(squares) % 64), constant_values=NONE)
        col = np.left_shift(np.uint8(1), (filled % self.n).astype(np.uint8))
        return _planes(np.where(filled // self.n == np.arange(self.n)[:, None], col, np.uint8(0)))

    def on_squares(self, planes: Array) -> Array:
        """Bools [game, square] of some planes."""
        return _squares(_bytes(planes)[:, : self.count])

    def flags(self, words: Array) -> Array:
        """Bools [game] of `white` or `passed`."""
        return _flags(words)[: self.count]

    def colours(self) -> Array:
        """[game, square] int8: 0 empty, 1 black, 2 white."""
        swap = (self.own ^ self.other) & self.white
        black, white = self.on_squares(self.own ^ swap), self.on_squares(self.other ^ swap)
        return black.view(np.int8) + 2 * white.view(np.int8)


# --- Random games ----------------------------------------------------------------------------------------------------

_GOLDEN = 0x9E3779B97F4A7C15


def mix(z: Array) -> Array:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of 64-bit words that scrambles well."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _streams(seed: int, first: int, count: int) -> Array:
    """The state of each game's own random stream: [game] uint64."""
    base = mix(np.array([seed], np.uint64) + np.uint64(_GOLDEN))
    return mix(base + np.arange(first, first + count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95))


def random_games(n: int, seed: int, first: int, count: int) -> Array:
    """Games number first .. first + count - 1 of this seed: squares [count, n^2 - 4] int8, NONE after the end.

    Each move is uniform among the legal ones (to 2^-26 relative). Game g of a seed is always the same game.
    """
    check_size(n)
    require(0 <= seed < 2**64, f"seed={seed}: 0 to 2^64 - 1")
    moves = np.full((n * n - 4, count), NONE, np.int8)
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        games = Games(n, size)
        stream = _streams(seed, first + start, size + -size % 64)
        for ply in range(n * n - 4):
            if ply % 2 == 0:  # one word of 64 random bits serves two plies
                bits = mix(stream + np.uint64((ply // 2 + 1) * _GOLDEN % 2**64))
                u, bits = bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)
            else:
                u = bits
            squares, placed = games.choose(u)
            if (squares == NONE).all():
                break
            moves[ply, start : start + size] = squares[:size]
            games.place(placed)
    return np.ascontiguousarray(moves.T)


# --- Given games -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Replay:
    """What is true after each move of some games; [game, ply] or [game, ply, square].

    board:   0 empty, 1 black, 2 white.    flipped: squares whose colour this move changed.
    legal:   squares the side to move may take next; none when the game is over.
    white:   White is to move (after passes).    passed: the side whose turn it was had to pass.
    played:  there was such a move, and it and all before it were legal; everything else is 0 or False where not.
    """

    board: Array
    flipped: Array
    legal: Array
    white: Array
    passed: Array
    played: Array


def replay(n: int, moves: Array, strict: bool = True) -> Replay:
    """Play these games: squares [game, ply], NONE from the end on.

    strict: raise UserError at the first illegal move, with the board; else the game ends before it.
    """
    check_size(n)
    moves = np.asarray(moves)
    require(
        moves.ndim == 2 and moves.shape[1] <= n * n - 4,
        f"games of shape {moves.shape} arrived; expected [game, at most {n * n - 4} moves] for a {n} x {n} board",
    )
    require(bool((moves < n * n).all()), f"square {moves.max(initial=0)} is not on a {n} x {n} board")
    gap = ((moves[:, 1:] != NONE) & (moves[:, :-1] == NONE)).any(1)
    require(not gap.any(), f"game {gap.argmax()} goes on after {NONE}, which ends a game; leave no move out")
    count, plies = moves.shape
    board, flipped, legal = np.zeros((3, count, plies, n * n), np.int8)
    flags = np.zeros((3, count, plies), bool)
    for start in range(0, count, BATCH):
        chunk = slice(start, start + BATCH)
        games = Games(n, len(moves[chunk]))
        going: Array = np.ones(games.count, bool)
        for ply in range(plies):
            placed = games.one_hot(np.where(going, moves[chunk, ply], NONE).astype(np.int8))
            if strict:
                _check_legal(games, placed, moves[chunk], ply, start)
            placed &= games.legal
            going = np.asarray(games.on_squares(placed).any(1))
            if not going.any():
                break
            turned = games.place(placed)
            for out, planes in ((flipped, turned), (legal, games.legal)):
                out[chunk, ply] = games.on_squares(planes) & going[:, None]
            board[chunk, ply] = games.colours() * going[:, None]
            for out, words in zip(flags, (games.white, games.passed), strict=False):
                out[chunk, ply] = games.flags(words) & going
            flags[2, chunk, ply] = going
    return Replay(board, flipped.view(bool), legal.view(bool), *flags)


def _check_legal(games: Games, placed: Array, moves: Array, ply: int, start: int) -> None:
    wrong = games.on_squares(placed & ~games.legal).any(1)
    if not wrong.any():
        return
    i = int(wrong.argmax())
    square, legal = int(moves[i, ply]), np.flatnonzero(games.on_squares(games.legal)[i]).tolist()
    mover = "White" if games.flags(games.white)[i] else "Black"
    why = ("it flips nothing", "a black disc lies there", "a white disc lies there")[games.colours()[i, square]]
    why = why if legal else "the game is over"
    may = f"{mover} may play {', '.join(square_name(games.n, s) for s in legal)}" if legal else "nobody can move"
    raise UserError(
        f"move {ply + 1} of game {start + i} is {square_name(games.n, square)} (square {square}), which is illegal: "
        f"{why}; {may} on\n{render(games.colours()[i])}"
    )


def legal_moves(own: Array, other: Array) -> Array:
    """Bools [board, square] where the owner of `own` may play, without passing: bools [board, square] twice."""
    n = int(own.shape[1] ** 0.5)
    check_size(n)
    mine, theirs = _planes(_row_bytes(own)), _planes(_row_bytes(other))
    ends = np.zeros_like(mine)
    ends[:, :n] = _Sweep(n, mine.shape[2]).forward(mine[:, :n], theirs[:, :n])
    return _squares(_bytes(ends & ~mine & ~theirs))[: len(own)]


# --- Every game ------------------------------------------------------------------------------------------------------


def every_line(n: int, plies: int) -> Iterator[tuple[Array, Games]]:
    """For ply 0 .. plies: every sequence of that many moves [line, ply] and where it leads, lexicographic."""
    moves, games = np.zeros((1, 0), np.int8), Games(n, 1)
    for ply in range(plies + 1):
        yield moves, games
        if ply == plies:
            return
        line, square = games.on_squares(games.legal).nonzero()
        if not len(line):
            return
        moves = np.concatenate([moves[line], square[:, None].astype(np.int8)], 1)
        own, other, white = games.on_squares(games.own), games.on_squares(games.other), games.flags(games.white)
        games = Games.at(own[line], other[line], white[line])
        games.place(games.one_hot(moves[:, -1]))


@cache
def all_games(n: int) -> Array:
    """Every complete game [60060, 12] on the 4 x 4 board, lexicographic, NONE after the end."""
    require(n == 4, f"n={n}: only the 4 x 4 board has few enough games (60,060) to list")
    found = []
    for moves, games in every_line(n, n * n - 4):
        over = ~games.on_squares(games.legal).any(1)
        ended = np.full((int(over.sum()), n * n - 4), NONE, np.int8)
        ended[:, : moves.shape[1]] = moves[over]
        found.append(ended)
    table = np.concatenate(found)
    return table[np.lexsort(table.T[::-1])]


# --- For people ------------------------------------------------------------------------------------------------------


def render(board: Array, marked: Array | None = None) -> str:
    """A board [square] (0 empty, 1 black, 2 white) as text: X black, O white, . empty, * a marked empty square."""
    n = int(len(board) ** 0.5)
    signs = np.array([".", "X", "O"])[np.asarray(board, int)]
    if marked is not None:
        signs = np.where(np.asarray(marked, bool) & (signs == "."), "*", signs)
    lines = [f"{i + 1} {' '.join(row)}" for i, row in enumerate(signs.reshape(n, n))]
    return "\n".join([f"  {' '.join('abcdefgh'[:n])}", *lines])
