"""The MIU system (Hofstadter, "Goedel, Escher, Bach", 1979, pages 33 to 41): rules, derivations, invariant, counts.

1. A string is M and a body of I's and U's. Axiom MI; four rules on whole strings:
       R1  xI -> xIU      R2  Mx -> Mxx      R3  xIIIy -> xUy      R4  xUUy -> xy
2. `is_theorem`: M and a body whose number of I's is no multiple of 3. Necessary: MI has one I, and mod 3 each rule
   keeps the number (R1, R3, R4) or doubles it (R2), so it never becomes 0. Sufficient: `derive` constructs.
3. `breadth_first`, `shortest_derivation`: exact distances, by search over text.
4. `bodies`, `choices`, `rule_between`: the same rules as tensor programs over many bodies, for generators.
5. `n_theorems`, `n_completions`, `next_symbol`: exact counts, and the law of a uniformly drawn theorem.

Counts: OEIS A331536, A369148. Came from: data.py. Read next: miu.py (the tasks).
A body as a tensor: one row of symbols, 1 for I and 0 for U, NOTHING after its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toylab.errors import UserError, require

AXIOM = "MI"
RULES = ("R1", "R2", "R3", "R4")
U, I, NOTHING = 0, 1, -1  # noqa: E741
LONGEST_TABLE = 20  # body length up to which all 2^n bodies are listed


# --- Text ------------------------------------------------------------------------------------------------------------


def check(string: str) -> None:
    """Raise UserError unless the string is over M, I, U (it need not be well formed)."""
    for place, symbol in enumerate(string):
        if symbol not in "MIU":
            raise UserError(f"{string!r} has {symbol!r} at place {place}: accepted symbols are M, I, U")


def well_formed(string: str) -> bool:
    """M once, at the start."""
    return string.startswith("M") and "M" not in string[1:]


def is_theorem(string: str) -> bool:
    """Decides by the invariant. Raises UserError on foreign symbols."""
    check(string)
    return well_formed(string) and string.count("I") % 3 != 0


def why_not(string: str) -> str:
    """Why a string has no derivation; "" for a theorem."""
    check(string)
    if not well_formed(string):
        return f"{string} is not M followed by I's and U's: every rule keeps the one M at the start of {AXIOM}"
    n = string.count("I")
    if n % 3:
        return ""
    return (
        f"{string} has {n} I's, a multiple of 3: {AXIOM} has 1, and mod 3 every rule keeps that number (R1, R3, R4) or "
        "doubles it (R2), so it is never 0"
    )


def successors(string: str) -> dict[str, str]:
    """Every string one rule away -> that rule.

    No string follows from the same one by two rules: R3 and R4 shorten and differ in the I's they leave, R1 and R2
    lengthen by different amounts, but for a body of one symbol, where they differ in their last.
    """
    body, found = string[1:], {}
    if body.endswith("I"):
        found[string + "U"] = "R1"
    found["M" + body + body] = "R2"
    for block, instead, rule in (("III", "U", "R3"), ("UU", "", "R4")):
        at = body.find(block)
        while at >= 0:
            found["M" + body[:at] + instead + body[at + len(block) :]] = rule
            at = body.find(block, at + 1)
    return found


def predecessors(string: str) -> set[str]:
    """Every string that has this one as a successor."""
    body = string[1:]
    half, odd = divmod(len(body), 2)
    found = {string[:-1]} if body.endswith("IU") else set()
    if not odd and body[:half] == body[half:]:
        found.add("M" + body[:half])
    found |= {f"M{body[:i]}III{body[i + 1 :]}" for i, symbol in enumerate(body) if symbol == "U"}
    return found | {f"M{body[:i]}UU{body[i:]}" for i in range(len(body) + 1)}


def breadth_first(steps: int, start: str = AXIOM) -> dict[str, int]:
    """Every string at most `steps` rules away from `start` -> the least number of rules.

    Known exactly, from MI: 1, 3, 6, 11, 25, 69, 282, 1,730, 15,885, 210,105 strings within 0, 1, ... 9 steps (A331536).
    """
    distance, frontier = {start: 0}, [start]
    for step in range(1, steps + 1):
        reached: list[str] = []
        for string in frontier:
            for new in successors(string):
                if new not in distance:
                    distance[new] = step
                    reached.append(new)
        frontier = reached
    return distance


def _provable(string: str) -> None:
    reason = why_not(string)
    require(not reason, f"there is no derivation of {string}, and there cannot be one: {reason}")


def shortest_derivation(string: str, max_steps: int = 12) -> list[str]:
    """MI, ..., string: one of the shortest, by search from both ends, of strings of any length.

    Raises UserError for a string that is no theorem (with the reason), and when `max_steps` rules do not suffice.
    """
    _provable(string)
    came: list[dict[str, str]] = [{AXIOM: ""}, {string: ""}]  # from MI forwards, from the string backwards
    frontiers = [[AXIOM], [string]]
    for _ in range(max_steps + 1):
        meeting = next((s for s in frontiers[0] if s in came[1]), None) or next(
            (s for s in frontiers[1] if s in came[0]), None
        )
        if meeting is not None:
            return [*reversed(_trace(meeting, came[0])), *_trace(meeting, came[1])[1:]]
        side = int(len(frontiers[1]) < len(frontiers[0]))
        reached = []
        for old in frontiers[side]:
            for new in predecessors(old) if side else successors(old):
                if new not in came[side]:
                    came[side][new] = old
                    reached.append(new)
        frontiers[side] = reached
    raise UserError(f"{string} is a theorem, but more than {max_steps} rules from {AXIOM}; use derive, or max_steps")


def _trace(string: str, came: dict[str, str]) -> list[str]:
    path = [string]
    while came[path[-1]]:
        path.append(came[path[-1]])
    return path


def derive(string: str) -> list[str]:
    """MI, ..., string: a derivation of any theorem, by construction; each is a successor of the one before.

    With i I's and u U's let N = i + 3u, and k the least with 2^k >= N and 2^k = N mod 3. R2 k times gives 2^k I's;
    e = (2^k - N)/3 blocks at the end become U's, made an even number by R1 first, and go in pairs; then u blocks
    become the U's of the string, from the left. Steps: k + [e odd] + e + ceil(e/2) + u.
    Raises UserError for a string that is no theorem, with the reason.
    """
    _provable(string)
    u = string.count("U")
    n = string.count("I") + 3 * u
    k = next(k for k in range(n.bit_length() + 2) if 2**k >= n and (2**k - n) % 3 == 0)
    path = ["M" + "I" * 2**j for j in range(k + 1)]
    excess = (2**k - n) // 3
    extra = excess % 2
    if extra:
        path.append(path[-1] + "U")
    # The last block first: the U's gather at the end.
    path += ["M" + "I" * (2**k - 3 * j) + "U" * (j + extra) for j in range(1, excess + 1)]
    path += ["M" + "I" * n + "U" * (excess + extra - 2 * j) for j in range(1, (excess + extra) // 2 + 1)]
    for at, symbol in enumerate(string):
        if symbol == "U":
            path.append(string[: at + 1] + path[-1][at + 3 :])
    return path


def rules_of(derivation: Iterable[str]) -> list[str]:
    """The rule of every step, so a verified derivation. Raises UserError at the first step that is none."""
    rules = []
    for old, new in pairwise(derivation):
        rule = successors(old).get(new)
        require(rule is not None, f"{new} does not follow from {old} by any of {', '.join(RULES)}")
        rules.append(str(rule))
    return rules


# --- Counts ----------------------------------------------------------------------------------------------------------

TWO_COS = (2, 1, -1, -2, -1, 1)  # 2 cos(k pi/3)


def n_completions(m: int, residue: int) -> int:
    """N_m(r): ways to go on for m symbols from #I = r mod 3 and end at a theorem; (2^(m+1) - 2 cos((m+2r) pi/3))/3."""
    return (2 ** (m + 1) - TWO_COS[(m + 2 * residue) % 6]) // 3


def n_theorems(n: int) -> int:
    """Theorems with n symbols after the M: N_n(0) = 0, 1, 3, 6, 11, 21, 42, 85, ...; two thirds of 2^n."""
    return n_completions(n, 0)


def next_symbol(lengths: dict[int, int | float]) -> Float[Tensor, "pos residue symbol"]:
    """P(U), P(I), P(end) after a prefix of each length and residue, of a theorem drawn uniformly given its length.

    lengths: body length -> its weight (any scale). A prefix of j symbols and residue r has weight
    sum_n lengths[n] N_(n-j)(r) / T(n). For one length n and m = n - j left: P(I) = N_(m-1)(r+1)/N_m(r).
    NaN where no theorem of these lengths begins so. float64.
    """
    longest = max(lengths)
    law = torch.zeros(longest + 1, 3, 3, dtype=torch.float64)
    for n, weight in lengths.items():
        require(n_theorems(n) > 0, f"there is no theorem with {n} symbols after the M")
        share = weight / n_theorems(n)
        for r in range(3):
            law[n, r, 2] += share * (r != 0)
            for j in range(n):
                law[j, r, U] += share * n_completions(n - j - 1, r)
                law[j, r, I] += share * n_completions(n - j - 1, (r + 1) % 3)
    return law / law.sum(-1, keepdim=True)


# --- Many bodies at once ---------------------------------------------------------------------------------------------


def bodies(n: int) -> Int[Tensor, "body n"]:
    """All 2^n bodies of length n, from U...U to I...I: row number = the body read as binary digits."""
    require(0 <= n <= LONGEST_TABLE, f"all bodies of length {n}: from 0 to {LONGEST_TABLE} symbols fit in memory")
    return torch.arange(2**n)[:, None] >> torch.arange(n - 1, -1, -1) & 1


def to_symbols(texts: Iterable[str], longest: int) -> Int[Tensor, "body longest"]:
    """Bodies given as text. Raises UserError on foreign symbols and on a body longer than `longest`."""
    rows = []
    for text in texts:
        check(text)
        require("M" not in text, f"{text!r} is a body: I's and U's, without an M")
        require(
            len(text) <= longest,
            f"M{text[:20]}{'...' if len(text) > 20 else ''} has {len(text)} symbols after the M; this context holds "
            f"{longest}",
        )
        rows.append([{"I": I, "U": U}[s] for s in text] + [NOTHING] * (longest - len(text)))
    return torch.tensor(rows, dtype=torch.long).view(-1, longest)


def to_text(symbols: Int[Tensor, "body longest"]) -> list[str]:
    """The inverse of to_symbols."""
    return ["".join("UI"[s] for s in row if s != NOTHING) for row in symbols.tolist()]


def length(symbols: Int[Tensor, "body longest"]) -> Int[Tensor, " body"]:
    return (symbols != NOTHING).sum(-1)


def n_ones(symbols: Int[Tensor, "body longest"]) -> Int[Tensor, " body"]:
    """#I of every body."""
    return (symbols == I).sum(-1)


def choices(symbols: Int[Tensor, "body longest"]) -> Bool[Tensor, "body choice"]:
    """Which distinct successors every body has that fit into `longest`.

    choice 0 is R1, 1 is R2, 2 + j is R3 at place j, 2 + longest + j is R4 at place j. R4 within one run of U's always
    gives the same string: only the first place of a run counts, so a uniform choice is uniform over strings.
    """
    longest, size = symbols.shape[1], length(symbols)
    last = symbols.gather(1, (size - 1).clamp(min=0)[:, None])[:, 0]
    one = (last == I) & (size < longest)
    two = (2 * size <= longest) & (size > 0)
    before = F.pad(symbols, (1, 0), value=NOTHING)[:, :longest]
    four = _run(symbols, U, 2) & (before != U)
    return torch.cat([one[:, None], two[:, None], _run(symbols, I, 3), four], 1)


def _run(symbols: Tensor, symbol: int, k: int) -> Bool[Tensor, "body longest"]:
    """Where k of this symbol begin."""
    same = F.pad(symbols == symbol, (0, k - 1))
    return torch.stack([same[:, i : i + symbols.shape[1]] for i in range(k)]).all(0)


def apply_choice(symbols: Int[Tensor, "body longest"], choice: Int[Tensor, " body"]) -> Int[Tensor, "body longest"]:
    """The successor of every body by this choice, which must be one it has."""
    longest = symbols.shape[1]
    size, place = length(symbols)[:, None], torch.arange(longest)
    choice = choice[:, None]
    three, four = (choice >= 2) & (choice < 2 + longest), choice >= 2 + longest
    at = torch.where(three, choice - 2, choice - 2 - longest)
    # What stands at k afterwards stood at k mod the length (R2), or two further on behind the block (R3, R4).
    source = torch.where(
        choice == 1, place % size.clamp(min=1), place + 2 * ((three & (place > at)) | (four & (place >= at)))
    )
    new = F.pad(symbols, (0, 2), value=NOTHING).gather(1, source)
    new = torch.where((choice == 1) & (place >= 2 * size), NOTHING, new)
    return torch.where(((choice == 0) & (place == size)) | (three & (place == at)), U, new)


def rule_between(old: Int[Tensor, "pair longest"], new: Int[Tensor, "pair longest"]) -> Int[Tensor, " pair"]:
    """0 where `new` does not follow from `old` by one rule, else 1..4, the number of the rule."""
    longest = old.shape[1]
    ahead = F.pad(old, (0, 2), value=NOTHING)[:, 2:]
    # agree[j]: the same before j. rejoin[j]: from j on the new string is the old one two further on.
    agree = F.pad((old == new).int().cumprod(1), (1, 0), value=1)[:, :longest].bool()
    rejoin = F.pad((new == ahead).int().flip(1).cumprod(1).flip(1), (0, 1), value=1).bool()
    three = agree & _run(old, I, 3) & (new == U) & rejoin[:, 1:]
    four = agree & _run(old, U, 2) & rejoin[:, :longest]
    has = choices(old)
    direct = [has[:, rule] & (apply_choice(old, torch.full((len(old),), rule)) == new).all(1) for rule in (0, 1)]
    holds = torch.stack([*direct, three.any(1), four.any(1)], 1)
    return (holds * torch.arange(1, 5)).amax(1)


def random_successor(
    symbols: Int[Tensor, "body longest"], generator: torch.Generator, by_rule: bool = False
) -> tuple[Int[Tensor, "body longest"], Int[Tensor, " body"]]:
    """One successor of every body and the number of its rule; the body itself and 0 where none fits.

    Uniform over the distinct successors that fit; by_rule: first over the rules that apply, then over their places.
    """
    has = choices(symbols)
    n, longest = symbols.shape
    rule = torch.cat([torch.tensor([1, 2]), torch.full((longest,), 3), torch.full((longest,), 4)])
    score = torch.rand(has.shape, generator=generator)
    if by_rule:
        score = score + 2 * torch.rand(n, 5, generator=generator).argsort(1)[:, rule]
    choice = score.masked_fill(~has, -1).argmax(1)
    stuck = ~has.any(1)
    return torch.where(stuck[:, None], symbols, apply_choice(symbols, choice)), torch.where(stuck, 0, rule[choice])


def draw(
    sizes: Int[Tensor, " body"],
    longest: int,
    generator: torch.Generator,
    theorem: Bool[Tensor, " body"] | None = None,
    p_one: float = 0.5,
) -> Int[Tensor, "body longest"]:
    """A random body of each size, every symbol an I with probability p_one, none of them all U's.

    theorem: which rows shall be theorems and which shall not, by rejection; None: as it falls. (Without U...U the
    shortest non-theorem is III, so rows that shall not be theorems need a size of at least 3.)
    """
    require(
        theorem is None or not bool((~theorem & (sizes < 3)).any()),
        "every body of 1 or 2 symbols but U, UU is a theorem: non-theorems need at least 3 symbols",
    )
    symbols = torch.full((len(sizes), longest), NOTHING)
    wrong, place = torch.arange(len(sizes)), torch.arange(longest)
    while len(wrong):
        # Several tries for each of the few rows that are left; the first good one counts.
        tries = min(max(len(sizes) // len(wrong), 1), 16)
        inside = (place < sizes[wrong, None])[:, None]
        fresh = (torch.rand(len(wrong), tries, longest, generator=generator) < p_one) & inside
        ones = fresh.sum(-1)
        good = ones > 0
        if theorem is not None:
            good &= (ones % 3 != 0) == theorem[wrong, None]
        first = fresh[torch.arange(len(wrong)), good.int().argmax(1)]
        symbols[wrong] = torch.where(inside[:, 0], first.long(), NOTHING)
        wrong = wrong[~good.any(1)]
    return symbols
