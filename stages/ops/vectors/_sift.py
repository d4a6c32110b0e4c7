"""Loops of `nearest`: keep each row's centres between which only float64 can decide.

Every sum in float64 has one order (`LANES`), so it has the same bits on every machine.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: N rows, B of a block, D width, P pairs in it; K centres, C of a strip, G groups of them; M
# nearest are asked for; S sums side by side.

GROUP = 32  # centres whose best score decides whether they are looked at one by one
LANES = 32  # sums that float64 keeps side by side
NEAR = 64  # centres near to a row that are kept before float64 decides among them
WIDE, TALL = 4, 6  # of a tile of sums, which 24 registers hold: registers of 16 rows, centres
PANEL = 16 * WIDE  # rows of a tile


class Pairs(NamedTuple):
    """Rows and centres that float64 compares."""

    row_BD: NDArray[np.float32]
    centre_KD: NDArray[np.float32]
    is_distance: bool
    lane_S: NDArray[np.float64]


class Near(NamedTuple):
    """Centres near to the rows of a block, found so far."""

    gap_B: NDArray[np.float32]  # scores further apart are in the right order
    sure_gap_B: NDArray[np.float64]  # and float64's own, summed in any order
    top_BM: NDArray[np.float32]  # the best scores, best first
    count_B: NDArray[np.int64]  # how many are kept in the next two, by ascending index
    which_BL: NDArray[np.int32]
    score_BL: NDArray[np.float64]
    sure_BM: NDArray[np.float64]  # what float64 has decided on, best first
    place_BM: NDArray[np.int32]  # and which centres these are; -1 is none


def nothing_near(gap_B: NDArray[np.float32], sure_gap_B: NDArray[np.float64], m: int) -> Near:
    B, L = len(gap_B), max(NEAR, 4 * m)
    top_BM = np.full((B, m), -np.inf, np.float32)
    which_BL, score_BL = np.empty((B, L), np.int32), np.empty((B, L))
    sure_BM, place_BM = np.full((B, m), -np.inf), np.full((B, m), -1, np.int32)
    count_B = np.zeros(B, np.int64)
    return Near(gap_B, sure_gap_B, top_BM, count_B, which_BL, score_BL, sure_BM, place_BM)


@compiled(fastmath={"reassoc", "contract"})  # a length only bounds errors: its last bits are free
def lengths(row_ND, middle_D, length_N):
    """Fills in the distance of each row to the middle."""
    for n in range(len(row_ND)):
        square = 0.0
        for d in range(len(middle_D)):
            rest = np.float64(row_ND[n, d]) - middle_D[d]
            square += rest * rest
        length_N[n] = np.sqrt(square)


@compiled()
def shift_rows(row_ND, middle_D, length_N, out_ND):
    """Fills in (row - middle) / length."""
    for n in range(len(row_ND)):
        scale = 1 / length_N[n]
        for d in range(len(middle_D)):
            out_ND[n, d] = (np.float64(row_ND[n, d]) - middle_D[d]) * scale


@compiled(fastmath={"reassoc", "contract"})
def halve_rows(row_ND, bits_ND, half_ND, lost_N):
    """Fills in bits of bfloat16 from rows and their bits, ties to even; and the loss's length."""
    for n in range(len(bits_ND)):
        lost = np.float32(0)
        for d in range(bits_ND.shape[1]):
            bits = bits_ND[n, d]
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            rounded = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
            half_ND[n, d] = np.uint16(rounded >> np.uint32(16))
            off = row_ND[n, d] - np.uint32(rounded).view(np.float32)
            lost += off * off
        lost_N[n] = np.sqrt(lost)


@compiled()
def sift(product_CB, first, weight_C, ratio_B, best_GB, near, pairs):
    """Adds to `near` a strip's centres whose score comes within the gap of the M best so far."""
    C, B = product_CB.shape
    M = near.top_BM.shape[1]
    best_B = np.full(B, -np.inf, np.float32)
    for begin in range(0, C, GROUP):
        group_CB = product_CB[begin : begin + GROUP]
        _best_of_group(group_CB, weight_C[begin:], ratio_B, best_GB[begin // GROUP])
        _greater(best_GB[begin // GROUP], best_B)
    if M == 1:
        _greater(best_B, near.top_BM[:, 0])
    for b in range(B):
        if best_B[b] < near.top_BM[b, M - 1] - near.gap_B[b]:
            continue
        for begin in range(0, C, GROUP):
            if best_GB[begin // GROUP, b] < near.top_BM[b, M - 1] - near.gap_B[b]:
                continue
            for c in range(begin, min(begin + GROUP, C)):
                score = product_CB[c, b] - weight_C[c] * ratio_B[b]
                if score >= near.top_BM[b, M - 1] - near.gap_B[b]:
                    if M > 1:
                        _raise_top(near.top_BM[b], score)
                    _keep(near, pairs, b, first + c, score)


@compiled()
def settle(near, pairs, valued):
    """Leaves the M nearest in `place_BM`, best first, and their float64 in `sure_BM`.

    Without `valued`, a row's only near centre gets no float64 value.
    """
    M = near.top_BM.shape[1]
    for b in range(len(near.count_B)):
        _drop_far(near, b)
        if M == 1 and near.count_B[b] == 1 and near.place_BM[b, 0] < 0 and not valued:
            near.place_BM[b, 0] = near.which_BL[b, 0]
        else:
            if M == 1 and near.count_B[b] > 1:
                _rule_out(near, pairs, b)
            _decide(near, pairs, b)


@compiled()
def add_rows(row_ND, order_N, begin_K, scale, sum_KD):
    """Adds up rows in fixed point by group: those of group k lie from `begin_K[k]` in the order.

    A number below 2^51 becomes whole, half to even, in the low bits of its sum with 1.5 * 2^52.
    """
    high = 6755399441055744.0
    zero = np.float64(high).view(np.int64)
    for k in range(len(begin_K) - 1):
        for index in range(begin_K[k], begin_K[k + 1]):
            n = order_N[index]
            for d in range(row_ND.shape[1]):
                number = np.float64(np.float64(row_ND[n, d]) * scale + high).view(np.int64)
                sum_KD[k, d] += number - zero


@compiled()
def _best_of_group(product_CB, weight_C, ratio_B, best_B):
    best_B[:] = -np.inf
    for c in range(len(product_CB)):
        product_B, weight = product_CB[c], weight_C[c]
        for b in range(len(ratio_B)):
            score = product_B[b] - weight * ratio_B[b]
            best_B[b] = score if score > best_B[b] else best_B[b]


@compiled()
def _greater(a_B, b_B):
    for b in range(len(b_B)):
        b_B[b] = a_B[b] if a_B[b] > b_B[b] else b_B[b]


@compiled()
def _raise_top(top_M, score):
    place = len(top_M) - 1
    while place > 0 and top_M[place - 1] < score:
        top_M[place] = top_M[place - 1]
        place -= 1
    top_M[place] = score


@compiled()
def _keep(near, pairs, b, which, score):
    if near.count_B[b] == near.which_BL.shape[1]:
        _drop_far(near, b)
        if near.count_B[b] > near.which_BL.shape[1] // 2:  # many are as near: bounds memory
            _decide(near, pairs, b)
    place = near.count_B[b]
    near.which_BL[b, place], near.score_BL[b, place] = which, score
    near.count_B[b] = place + 1


@compiled()
def _drop_far(near, b):
    _drop_below(near, b, near.top_BM[b, near.top_BM.shape[1] - 1] - near.gap_B[b])


@compiled()
def _drop_below(near, b, least):
    kept = 0
    for place in range(near.count_B[b]):
        if near.score_BL[b, place] >= least:
            near.which_BL[b, kept] = near.which_BL[b, place]
            near.score_BL[b, kept] = near.score_BL[b, place]
            kept += 1
    near.count_B[b] = kept


@compiled()
def _rule_out(near, pairs, b):
    """Drops centres that float64, summed in any order and so several times as fast, rules out."""
    best = -np.inf
    for place in range(near.count_B[b]):
        which = near.which_BL[b, place]
        score = _rough(pairs.row_BD[b], pairs.centre_KD[which], pairs.is_distance)
        near.score_BL[b, place] = score
        best = max(best, score)
    _drop_below(near, b, best - near.sure_gap_B[b])


@compiled()
def _decide(near, pairs, b):
    """Ranks near centres of a row in float64; of equally near ones the smaller index is first."""
    M = near.sure_BM.shape[1]
    for number in range(near.count_B[b]):  # by ascending index: a later one must be nearer
        which = near.which_BL[b, number]
        sure = _wide(pairs.row_BD[b], pairs.centre_KD[which], pairs.is_distance, pairs.lane_S)
        place = M
        while place > 0 and (near.place_BM[b, place - 1] < 0 or near.sure_BM[b, place - 1] < sure):
            place -= 1
            if place + 1 < M:
                near.sure_BM[b, place + 1] = near.sure_BM[b, place]
                near.place_BM[b, place + 1] = near.place_BM[b, place]
        if place < M:
            near.sure_BM[b, place], near.place_BM[b, place] = sure, which
    near.count_B[b] = 0


@compiled(fastmath={"reassoc", "contract"})
def _rough(a_D, b_D, is_distance):
    total = 0.0
    if is_distance:
        for d in range(len(a_D)):
            off = np.float64(a_D[d]) - np.float64(b_D[d])
            total -= off * off
    else:
        for d in range(len(a_D)):
            total += np.float64(a_D[d]) * np.float64(b_D[d])
    return total


@compiled()
def _wide(a_D, b_D, is_distance, lane_S):
    """Returns the dot product, or minus the squared distance; only the sums are rounded."""
    lane_S[:] = 0.0
    whole = len(a_D) - len(a_D) % LANES
    for begin in range(0, whole, LANES):
        a_S, b_S = a_D[begin : begin + LANES], b_D[begin : begin + LANES]  # fixed: many at a time
        if is_distance:
            for s in range(LANES):
                off = np.float64(a_S[s]) - np.float64(b_S[s])
                lane_S[s] -= off * off
        else:
            for s in range(LANES):
                lane_S[s] += np.float64(a_S[s]) * np.float64(b_S[s])
    for d in range(whole, len(a_D)):
        a, b = np.float64(a_D[d]), np.float64(b_D[d])
        lane_S[d - whole] += -(a - b) * (a - b) if is_distance else a * b
    half = LANES // 2
    while half:
        for s in range(half):
            lane_S[s] += lane_S[s + half]
        half //= 2
    return lane_S[0]


def tiled(pair_CP, centres: int, half_DB: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Returns (centres, B) products in bfloat16; `pair_CP` is `pairs_of` centres, TALL at a time.

    For a processor with `avx512bf16`: NumPy has no bfloat16, and importing torch takes a second.
    """
    pair_BP = pairs_of(half_DB.T, PANEL)
    panel_GPB = pair_BP.reshape(-1, PANEL, pair_BP.shape[1]).transpose(0, 2, 1).copy()
    product_CB = np.empty((len(pair_CP), len(pair_BP)), np.float32)
    _multiply(panel_GPB, pair_CP, product_CB)
    return np.ascontiguousarray(product_CB[:centres, : half_DB.shape[1]])


def pairs_of(half_ND: NDArray[np.uint16], at_once: int) -> NDArray[np.uint32]:
    """Returns pairs of numbers: at least one a vector, and a multiple of `at_once` vectors."""
    N, D = half_ND.shape
    short = -N % at_once, D % 2 if D else 2
    return (np.pad(half_ND, ((0, short[0]), (0, short[1]))) if any(short) else half_ND).view("u4")


@intrinsic
def _tile(typing, panel, centre, product, pairs, to_next):
    """Stores products of a panel and TALL centres, at addresses; `to_next` is in bytes."""
    place, number, value = ir.IntType(64), ir.IntType(32), ir.FloatType()
    lanes = ir.VectorType(value, 16)
    step = ir.InlineAsm(ir.FunctionType(lanes, [lanes] * 3), "vdpbf16ps $2, $1, $0", "=v,v,v,0")

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> None:
        binding.initialize_native_asmparser()
        panel, centre, product, pairs, to_next = arguments

        def spot(address: Any, times: Any, size: Any, kind: Any) -> Any:
            moved = builder.add(address, builder.mul(times, size))
            return builder.inttoptr(moved, kind.as_pointer())

        before, loop, after = builder.block, *map(builder.append_basic_block, ("loop", "after"))
        builder.branch(loop)
        builder.position_at_end(loop)
        p, *sums = [builder.phi(kind) for kind in [place, *[lanes] * (TALL * WIDE)]]
        begin = spot(panel, p, place(4 * PANEL), lanes)
        rows = [builder.load(builder.gep(begin, [number(w)]), align=4) for w in range(WIDE)]
        more, none, zeros = [], lanes(ir.Undefined), ir.VectorType(number, 16)([0] * 16)
        for c in range(TALL):
            pair = spot(centre, builder.add(builder.mul(pairs, place(c)), p), place(4), value)
            lane = builder.insert_element(none, builder.load(pair), number(0))
            every = builder.shuffle_vector(lane, none, zeros)
            more += [builder.call(step, [rows[w], every, sums[c * WIDE + w]]) for w in range(WIDE)]
        next_p = builder.add(p, place(1))
        builder.cbranch(builder.icmp_signed("<", next_p, pairs), loop, after)
        zero = [place(0), *[lanes([0.0] * 16)] * len(sums)]
        for phi, start, later in zip([p, *sums], zero, [next_p, *more], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(later, loop)
        builder.position_at_end(after)
        for index, total in enumerate(more):
            here = builder.add(product, place(index % WIDE * 64))
            builder.store(total, spot(here, place(index // WIDE), to_next, lanes), align=4)

    return types.void(*[types.intp] * 5), generate


@compiled()
def _multiply(panel_GPB, pair_CP, product_CB):
    """Fills in the products of panels of rows and of centres; both have at least a pair."""
    to_next = 4 * product_CB.shape[1]
    for g in range(len(panel_GPB)):
        panel = panel_GPB[g].ctypes.data
        for c in range(0, len(pair_CP), TALL):
            centre, product = pair_CP[c].ctypes.data, product_CB[c, g * PANEL :].ctypes.data
            # Numba itself gives the intrinsic's first argument.
            _tile(panel, centre, product, pair_CP.shape[1], to_next)  # type: ignore[call-arg]
