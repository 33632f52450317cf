"""Triton kernels for GPUs: one launch computes a fused stage (backends/ir.py) on all edges of a batch.

Layout: all tensors of stages are (N, E, H, W, C), the channels of an edge side by side, the images outermost.

Work: a program processes one edge with all its channels, padded to a power of two CP ≥ C. It takes BP runs of Q
adjacent pixels at a time, counted over all images, `rounds` times. A depthwise convolution loads a column once for all
pixels of a run that see it.

Sums over pixels (statistics, gradients of weights) are added up within a program and written as its part of a tensor
(G, …); a second pass adds the parts. There are no atomics, so sums are the same in every run. Arithmetic is in float32
(float64 for float64 tensors), whatever type the tensors have.
"""

import triton
import triton.language as tl
from triton.language.core import constexpr

EDGES, NODES, MIXED_NODES = constexpr(0), constexpr(1), constexpr(2)
MAX_POOL, AVG_POOL = constexpr(1), constexpr(2)


@triton.jit
def _with(values, i: tl.constexpr, value):
    """A copy of the tuple with value i replaced."""
    return values[:i] + (value,) + values[i + 1 :]  # noqa: RUF005 (Triton knows no other way)


@triton.jit
def _activated(v, ACTIVATION: tl.constexpr):
    if ACTIVATION >= 1:
        v = tl.maximum(v, 0.0)
    if ACTIVATION == 2:
        v = tl.minimum(v, 6.0)
    return v


@triton.jit
def _passed_back(gradient, places, mask, scale, shift, ACTIVATION: tl.constexpr, A: tl.constexpr):
    """Backward pass of the activation: (the gradient of the normalised input v, v), v being loaded from `places`."""
    v = tl.load(places, mask=mask, other=0.0).to(A)
    v = v * scale[None, :] + shift[None, :]
    if ACTIVATION == 1:
        gradient = tl.where(v > 0.0, gradient, 0.0)
    if ACTIVATION == 2:
        gradient = tl.where((v > 0.0) & (v < 6.0), gradient, 0.0)
    return tl.where(mask, gradient, 0.0), v


@triton.jit
def _write_sums(place, M, c, C: tl.constexpr, total, other):
    """Write a program's part: the sums of two (BP, CP) tensors over their pixels, into rows M values apart."""
    tl.store(place + c, tl.sum(total, 0), mask=c < C)
    tl.store(place + M + c, tl.sum(other, 0), mask=c < C)


@triton.jit
def _pixels(block, N, P: tl.constexpr, BP: tl.constexpr):
    """The BP pixels of a block: (mask of those that exist, their images, their numbers within the image)."""
    p = block * BP + tl.arange(0, BP)
    return p < N * P, (p // P).to(tl.int64), p % P


@triton.jit
def _runs(block, N, H: tl.constexpr, W: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr):
    """The BP runs of a block: (mask of those that exist, images, rows and columns of their first pixels)."""
    ACROSS: tl.constexpr = (W + Q - 1) // Q
    there, n, r = _pixels(block, N, H * ACROSS, BP)
    return there, n, r // ACROSS, r % ACROSS * Q


@triton.jit
def _pixels_before(run, rows, W, Q):
    """How many pixels lie in the runs before this one: runs of Q pixels, `rows` rows of W pixels in all."""
    across = (W + Q - 1) // Q
    return tl.minimum(run // across, rows) * W + tl.where(run // across < rows, run % across * Q, 0)


@triton.jit
def _inside(row, w, OFFSET: tl.constexpr, STEP: tl.constexpr, W: tl.constexpr):
    """`row`, a mask of existing rows, where column w + OFFSET exists as well. w is a multiple of STEP; if W is one,
    most offsets need no test."""
    if OFFSET < 0 or OFFSET >= STEP or W % STEP != 0:
        row = row & (w + OFFSET >= 0) & (w + OFFSET < W)
    return row


@triton.jit
def _columns(
    line, row, w, c, scale, shift, OFFSET: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, W: tl.constexpr,
    PIXEL: tl.constexpr, C: tl.constexpr, POOL: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    BP: tl.constexpr, CP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """The activated input at SPAN columns from w + OFFSET on, each (BP, CP), padded where no pixel exists: with zero,
    or -∞ for a max pool. line: addresses of the pixels at w, a multiple of STEP; row: mask of the rows that exist."""
    columns = (tl.zeros((BP, CP), A),) * SPAN
    for u in tl.static_range(SPAN):
        mask = _inside(row, w, u + OFFSET, STEP, W)[:, None] & (c < C)[None, :]
        if POOL == MAX_POOL or (NORM and ACTIVATION > 0):  # the activation turns -∞ into zero
            v = tl.load(line + (u + OFFSET) * PIXEL, mask=mask, other=float("-inf")).to(A)
        else:
            v = tl.load(line + (u + OFFSET) * PIXEL, mask=mask, other=0).to(A)
        if NORM:
            v = v * scale[None, :] + shift[None, :]
        v = _activated(v, ACTIVATION)
        if NORM and ACTIVATION == 0:
            v = tl.where(mask, v, 0.0)
        columns = _with(columns, u, v)
    return columns


@triton.jit
def _source(
    norm, M, source, c, E, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    FIRST: tl.constexpr, NORM: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """How a stage reads its input, a state (FIRST) or an edge: (its offset, the number of pixels between images, scale
    (positive) and shift of its BatchNorm, which are 1 and 0 without one)."""
    scale, shift = tl.full((CP,), 1.0, A), tl.zeros((CP,), A)
    if NORM:
        scale = tl.load(norm + source * C + c, mask=c < C, other=1.0).to(A)
        shift = tl.load(norm + M + source * C + c, mask=c < C, other=0.0).to(A)
    if FIRST:
        begin = source * C
        images = H * W
    else:
        begin = source.to(tl.int64) * (H * W * C)
        images = E * (H * W)
    return begin, images, scale, shift


@triton.jit
def _places(x, n, h, w, c, images, W: tl.constexpr, PIXEL: tl.constexpr):
    """The addresses (BP, CP) of the channels c of pixels (h, w) of images n."""
    return x + ((n * images + h * W + w) * PIXEL)[:, None] + c[None, :]


@triton.jit
def _taps(weight, i, between, c, K: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, A: tl.constexpr):
    """The K taps in row i of a depthwise kernel, each (1, CP)."""
    taps = (tl.zeros((1, CP), A),) * K
    for j in tl.static_range(K):
        tap = tl.load(weight + (i * K + j) * between + c, mask=c < C, other=0.0).to(A)
        taps = _with(taps, j, tap[None, :])
    return taps


@triton.jit
def _with_row(
    outs, winners, columns, taps, i, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, POOL: tl.constexpr,
    Q: tl.constexpr,
):  # fmt: skip
    """One row of `_convolved`: add the products of row i's taps and columns, or take them into the pool."""
    for q in tl.static_range(Q):
        out, winner = outs[q], winners[q]
        for j in tl.static_range(K):
            v = columns[q * STRIDE + j * DILATION]
            if POOL == MAX_POOL:
                winner = tl.where(v > out, i * K + j, winner)
                out = tl.maximum(out, v)
            elif POOL == AVG_POOL:
                out += v
            else:
                out += v * taps[j]
        outs, winners = _with(outs, q, out), _with(winners, q, winner)
    return outs, winners


@triton.jit
def _convolved(
    line, there, ho, wo, c, scale, shift, weight, between,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PIXEL: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, POOL: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, Q: tl.constexpr, BP: tl.constexpr, CP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """At the Q pixels of runs that begin at (ho, wo): the depthwise convolution of the activated input, a max pool's
    maximum, an average pool's sum, or with K = 0 the activated input itself; and the tap that won the max pool. Each
    is Q times (BP, CP). line: addresses under the middle taps of the first pixels."""
    PAD: tl.constexpr = K // 2 * DILATION
    SPAN: tl.constexpr = (Q - 1) * STRIDE + 2 * PAD + 1
    outs = (tl.full((BP, CP), float("-inf") if POOL == MAX_POOL else 0.0, A),) * Q
    winners = (tl.zeros((BP, CP), tl.int32),) * Q
    if K == 0:
        return _columns(line, there, wo, c, scale, shift, 0, Q, Q, W, PIXEL, C, 0, NORM, ACTIVATION, BP, CP, A), winners
    for i in range(K):
        h = ho * STRIDE + i * DILATION - PAD
        row = there & (h >= 0) & (h < H)
        columns = _columns(
            line + (i * DILATION - PAD) * (W * PIXEL), row, wo * STRIDE, c, scale, shift, -PAD, SPAN, Q * STRIDE, W,
            PIXEL, C, POOL, NORM, ACTIVATION, BP, CP, A,
        )  # fmt: skip
        taps = _taps(weight, i, between, c, K, C, CP, A) if POOL == 0 else ()
        outs, winners = _with_row(outs, winners, columns, taps, i, K, STRIDE, DILATION, POOL, Q)
    return outs, winners


@triton.jit
def _averaged_over(h, w, H: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr):
    """The number of pixels that a 3×3 average pool covers at its output (h, w): fewer at the border."""
    rows = tl.minimum(h * STRIDE + 1, H - 1) - tl.maximum(h * STRIDE - 1, 0) + 1
    columns = tl.minimum(w * STRIDE + 1, W - 1) - tl.maximum(w * STRIDE - 1, 0) + 1
    return tl.maximum(rows * columns, 1)


@triton.jit
def _product(a, b, DOT: tl.constexpr, A: tl.constexpr):
    """The product of two matrices in the type of b, added up in A. DOT: "ieee" for exact products of float32, "tf32x3"
    for nearly exact ones on tensor cores; of bfloat16, all are exact."""
    if DOT == "tf32x3":
        return tl.dot(a.to(b.dtype), b, input_precision="tf32x3", out_dtype=A)
    return tl.dot(a.to(b.dtype), b, input_precision="ieee", out_dtype=A)


@triton.jit(do_not_specialize=["in_M", "part_M", "part_at", "N", "E", "shared_by", "rounds"])
def stage_forward(
    x, in_norm, in_M, depthwise, pointwise, y, winner, part, part_M, part_at, N, E, shared_by, rounds,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, Co: tl.constexpr, CP: tl.constexpr,
    CoP: tl.constexpr, BP: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, POOL: tl.constexpr, POINTWISE: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, DOT: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Forward pass of a stage: activation, depthwise convolution or pool, 1×1.

    Writes y before its BatchNorm, the winning taps of a max pool, and this program's part (G, 2, M): mean and sum of
    squared deviations of its pixels, which `statistics` combines.
    """
    g, e = tl.program_id(0), tl.program_id(1)
    c, co = tl.arange(0, CP), tl.arange(0, CoP)
    source = e // shared_by if FIRST else e
    begin, images, scale, shift = _source(in_norm, in_M, source, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    if K > 0 and POOL == 0:
        depthwise += e * C
    if POINTWISE:  # the edge's (C, Co) matrix stays in registers for all rounds
        place = e * Co * C + co[None, :] * C + c[:, None]
        matrix = tl.load(pointwise + place, mask=(co < Co)[None, :] & (c < C)[:, None], other=0.0)
        if DOT == "bf16":
            matrix = matrix.to(tl.bfloat16)
    total, squares = tl.zeros((BP, CoP), A), tl.zeros((BP, CoP), A)
    # Each of the BP lanes sums up deviations from its first pixel: from sums of the values and of their squares, the
    # variance would be lost where the mean is much larger than the deviation.
    pivot, seen = tl.zeros((BP, CoP), A), tl.zeros((BP,), tl.int32)
    for step in range(rounds):
        there, n, ho, wo = _runs(g * rounds + step, N, Ho, Wo, Q, BP)
        line = _places(x, n, ho * STRIDE, wo * STRIDE, c, images, W, IN_PIXEL)
        outs, winners = _convolved(
            line, there, ho, wo, c, scale, shift, depthwise, E * C, C, H, W, IN_PIXEL,
            K, STRIDE, DILATION, POOL, NORM, ACTIVATION, Q, BP, CP, A,
        )  # fmt: skip
        to = _places(y, n * E + e, ho, wo, co, Ho * Wo, Wo, Co)
        for q in tl.static_range(Q):
            out = outs[q]
            if POOL == AVG_POOL:
                out = out / _averaged_over(ho, wo + q, H, W, STRIDE).to(A)[:, None]
            if POINTWISE:
                out = _product(out, matrix, DOT, A)
            held = out.to(y.dtype.element_ty)  # statistics are those of the rounded values, which the next stage reads
            mask = _inside(there, wo, q, Q, Wo)[:, None] & (co < Co)[None, :]
            tl.store(to + q * Co, held, mask=mask)
            if POOL == MAX_POOL:
                chosen = _places(winner, n * E + e, ho, wo, co, Ho * Wo, Wo, Co)
                tl.store(chosen + q * Co, winners[q].to(tl.int8), mask=mask)
            out = held.to(A)
            if q == 0:
                pivot = tl.where(mask & (step == 0), out, pivot)
            out = tl.where(mask, out - pivot, 0.0)
            total += out
            squares += out * out
        seen += tl.where(there, tl.minimum(Wo - wo, Q), 0)
    # Mean and sum of squared deviations of each lane, then of the program (Chan, Golub, LeVeque 1983).
    count = seen[:, None].to(A)
    off = total / tl.maximum(count, 1.0)
    squares = tl.maximum(squares - off * off * count, 0.0)
    means = pivot + off
    mean = tl.sum(means * count, 0) / tl.maximum(tl.sum(seen, 0), 1).to(A)
    off = means - mean[None, :]
    place = part + g * 2 * part_M + part_at + e * Co + co
    tl.store(place, mean, mask=co < Co)
    tl.store(place + part_M, tl.sum(squares + off * off * count, 0), mask=co < Co)


@triton.jit(do_not_specialize=["M", "G", "count", "rows", "W", "Q", "runs"])
def statistics(
    part, norm, stats, M, G, count, rows, W, Q, runs,
    EPS: tl.constexpr, B: tl.constexpr, R: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """BatchNorm statistics from the parts (G, 2, M) of `stage_forward`, each for `runs` runs of Q of `rows` · W pixels.

    norm (2, M): y · norm[0] + norm[1] is normalised. stats (2, M): mean and unbiased variance for running statistics.
    """
    m = tl.program_id(0) * B + tl.arange(0, B)
    total, squares = tl.zeros((B,), tl.float64), tl.zeros((B,), tl.float64)
    for start in range(0, G, R):
        g = start + tl.arange(0, R)
        at = part + g[:, None] * 2 * M + m[None, :]
        mask = (g < G)[:, None] & (m < M)[None, :]
        pixels = (_pixels_before((g + 1) * runs, rows, W, Q) - _pixels_before(g * runs, rows, W, Q)).to(tl.float64)
        # in float64 the squares of the parts' means are exact enough to be subtracted from each other
        means = tl.load(at, mask=mask, other=0.0).to(tl.float64)
        total += tl.sum(pixels[:, None] * means, 0)
        squares += tl.sum(tl.load(at + M, mask=mask, other=0.0).to(tl.float64) + pixels[:, None] * means * means, 0)
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    inverse = 1.0 / tl.sqrt(variance + EPS)
    tl.store(norm + m, inverse.to(A), mask=m < M)
    tl.store(norm + M + m, (-mean * inverse).to(A), mask=m < M)
    tl.store(stats + m, mean.to(A), mask=m < M)
    tl.store(stats + M + m, (variance * count / (count - 1)).to(A), mask=m < M)


@triton.jit(do_not_specialize=["norm_M", "N", "T"])
def mix_forward(
    chains, pools, x, norm, norm_M, gamma, onto, nodes, N, T,
    CHAINS: tl.constexpr, POOLS: tl.constexpr, IDENTITY: tl.constexpr, ONTO: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """The weighted sum of a node: nodes (T, N, P, C) = Σ gamma · normalised output.

    The terms are chains on edges (CHAINS, N, E, P, C), pools on states (POOLS, N, S, P, C), with IDENTITY the states
    themselves, and with ONTO what the node holds already, (T, N, P, C). BatchNorm is applied here, on the way.
    """
    t = tl.program_id(1)
    there, n, r = _pixels(tl.program_id(0), N, P, BP)
    c = tl.arange(0, CP)
    mask = there[:, None] & (c < C)[None, :]
    E = S * T
    total = tl.zeros((BP, CP), A)
    for o in tl.static_range(CHAINS):
        for s in tl.static_range(S):
            e = s * T + t
            # gamma scales BatchNorm's own scale and shift: one multiplication and addition a value
            factor = tl.load(gamma + o * E + e).to(A)
            scale = tl.load(norm + (o * E + e) * C + c, mask=c < C, other=0.0).to(A) * factor
            shift = tl.load(norm + norm_M + (o * E + e) * C + c, mask=c < C, other=0.0).to(A) * factor
            at = ((n + o * N) * E + e) * P * C + r * C
            v = tl.load(chains + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            total += v * scale[None, :] + shift[None, :]
    for i in tl.static_range(POOLS):
        for s in tl.static_range(S):
            factor = tl.load(gamma + (CHAINS + i) * E + s * T + t).to(A)
            at = ((n + i * N) * S + s) * P * C + r * C
            v = tl.load(pools + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            place = norm + CHAINS * E * C + (i * S + s) * C + c
            v = v * tl.load(place, mask=c < C, other=0.0).to(A)[None, :]
            v += tl.load(place + norm_M, mask=c < C, other=0.0).to(A)[None, :]
            total += v * factor
    if IDENTITY:
        for s in tl.static_range(S):
            factor = tl.load(gamma + (CHAINS + POOLS) * E + s * T + t).to(A)
            at = (n * P + r) * (S * C) + s * C
            total += tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0).to(A) * factor
    to = (((n + t * N) * P + r) * C)[:, None] + c[None, :]
    if ONTO:
        total += tl.load(onto + to, mask=mask, other=0.0).to(A)
    tl.store(nodes + to, total.to(nodes.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["norm_M", "N", "rounds", "T"])
def mix_backward(
    chains, pools, x, norm, norm_M, gradient, part, N, T, rounds,
    CHAINS: tl.constexpr, POOLS: tl.constexpr, IDENTITY: tl.constexpr, S: tl.constexpr,
    P: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Sums over pixels that the gradients of gamma and of the last BatchNorms need.

    part (G, number of operations + 1, E, C): this program's sums of the node's gradient times each operation's
    normalised output; the last row sums the gradient alone.
    """
    g, e = tl.program_id(0), tl.program_id(1)
    s, t = e // T, e % T
    E = S * T
    c = tl.arange(0, CP)
    ROWS: tl.constexpr = CHAINS + POOLS + IDENTITY + 1
    sums = (tl.zeros((BP, CP), A),) * ROWS
    for step in range(rounds):
        there, n, r = _pixels(g * rounds + step, N, P, BP)
        mask = there[:, None] & (c < C)[None, :]
        at = ((n + t * N) * P + r) * C
        d = tl.load(gradient + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
        sums = _with(sums, ROWS - 1, sums[ROWS - 1] + d)
        for o in tl.static_range(CHAINS):
            scale = tl.load(norm + (o * E + e) * C + c, mask=c < C, other=0.0).to(A)
            shift = tl.load(norm + norm_M + (o * E + e) * C + c, mask=c < C, other=0.0).to(A)
            at = ((n + o * N) * E + e) * P * C + r * C
            v = tl.load(chains + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            sums = _with(sums, o, sums[o] + d * (v * scale[None, :] + shift[None, :]))
        for i in tl.static_range(POOLS):
            at = ((n + i * N) * S + s) * P * C + r * C
            v = tl.load(pools + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            place = norm + CHAINS * E * C + (i * S + s) * C + c
            v = v * tl.load(place, mask=c < C, other=0.0).to(A)[None, :]
            v += tl.load(place + norm_M, mask=c < C, other=0.0).to(A)[None, :]
            sums = _with(sums, CHAINS + i, sums[CHAINS + i] + d * v)
        if IDENTITY:
            at = (n * P + r) * (S * C) + s * C
            v = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            sums = _with(sums, CHAINS + POOLS, sums[CHAINS + POOLS] + d * v)
    for row in tl.static_range(ROWS):
        tl.store(part + ((g * ROWS + row) * E + e) * C + c, tl.sum(sums[row], 0), mask=c < C)


@triton.jit(do_not_specialize=["gamma_at", "N", "T"])
def identity_backward(
    gradient, gamma, gamma_at, to, N, T,
    S: tl.constexpr, P: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """The gradient of the states through the identity: to (N, P, S · C). gamma_at: offset of its gamma, (E,)."""
    s = tl.program_id(1)
    gamma += gamma_at
    there, n, r = _pixels(tl.program_id(0), N, P, BP)
    c = tl.arange(0, CP)
    mask = there[:, None] & (c < C)[None, :]
    total = tl.zeros((BP, CP), A)
    for t in range(T):
        at = ((n + t * N) * P + r) * C
        d = tl.load(gradient + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
        total += d * tl.load(gamma + s * T + t).to(A)
    at = (n * P + r) * (S * C) + s * C
    tl.store(to + at[:, None] + c[None, :], total.to(to.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=[
        "gamma_at",
        "in_M",
        "norm_M",
        "to_part_M",
        "to_part_at",
        "weights_M",
        "pointwise_at",
        "N",
        "E",
        "T",
        "shared_by",
        "count",
        "rounds",
    ]
)
def stage_backward(
    x, in_norm, in_M, depthwise, pointwise, y, norm, norm_M,
    gradient, gamma, gamma_at, sums, sums_y, to, to_part, to_part_M, to_part_at, weight_part, weights_M, pointwise_at,
    N, E, T, shared_by, count, rounds,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, Co: tl.constexpr, CP: tl.constexpr,
    CoP: tl.constexpr, BP: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, POOL: tl.constexpr, POINTWISE: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, TRAINING: tl.constexpr, SOURCE: tl.constexpr,
    WEIGHTS: tl.constexpr, DOT: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Backward pass of a stage, first half: through BatchNorm and the 1×1 convolution.

    Writes `to` (N, E, Ho, Wo, C): the gradient of the depthwise convolution's or pool's output, which
    `depthwise_backward` takes on. A stage with neither (K = 0) ends here: `to` is the gradient of the previous stage's
    normalised output, and to_part (G, 2, M) this program's part of the sums that the BatchNorm there needs.
    With WEIGHTS, also this program's part (G, weights_M) of the 1×1's weight gradients. SOURCE says whether `gradient`
    is that of edges (from the next stage), of nodes, or for pools of all nodes. gamma_at: offset of the operation's
    gamma.
    """
    g, e = tl.program_id(0), tl.program_id(1)
    c, co = tl.arange(0, CP), tl.arange(0, CoP)
    gamma += gamma_at
    source = e // shared_by if FIRST else e
    begin, images, scale, shift = _source(in_norm, in_M, source, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    if K > 0 and WEIGHTS:
        depthwise += e * C
    if POINTWISE:
        row = e * Co * C + co[:, None] * C
        matrix = tl.load(pointwise + row + c[None, :], mask=(co < Co)[:, None] & (c < C)[None, :], other=0.0)
        if DOT == "bf16":
            matrix = matrix.to(tl.bfloat16)
    inverse = tl.load(norm + e * Co + co, mask=co < Co, other=0.0).to(A)
    offset = tl.load(norm + norm_M + e * Co + co, mask=co < Co, other=0.0).to(A)
    # BatchNorm's backward pass in train mode: d - mean(d) - y · mean(d · y), times 1 / deviation, y normalised
    mean, mean_y = tl.zeros((CoP,), A), tl.zeros((CoP,), A)
    if TRAINING:
        if SOURCE == MIXED_NODES:
            for t in range(T):
                factor = tl.load(gamma + e * T + t).to(A)
                mean += tl.load(sums + (e * T + t) * Co + co, mask=co < Co, other=0.0).to(A) * factor
                mean_y += tl.load(sums_y + (e * T + t) * Co + co, mask=co < Co, other=0.0).to(A) * factor
        else:
            mean = tl.load(sums + e * Co + co, mask=co < Co, other=0.0).to(A)
            mean_y = tl.load(sums_y + e * Co + co, mask=co < Co, other=0.0).to(A)
            if SOURCE == NODES:
                factor = tl.load(gamma + e).to(A)
                mean, mean_y = mean * factor, mean_y * factor
        mean, mean_y = mean / count, mean_y / count
    by_matrix = tl.zeros((CoP, CP), A)
    total, total_y = tl.zeros((BP, CP), A), tl.zeros((BP, CP), A)
    for step in range(rounds):
        there, n, ho, wo = _runs(g * rounds + step, N, Ho, Wo, Q, BP)
        line = _places(x, n, ho * STRIDE, wo * STRIDE, c, images, W, IN_PIXEL)
        if WEIGHTS:  # the 1×1's input, computed again: storing it would double a stage's memory
            inputs, _ = _convolved(
                line, there, ho, wo, c, scale, shift, depthwise, E * C, C, H, W, IN_PIXEL,
                K, STRIDE, DILATION, POOL, NORM, ACTIVATION, Q, BP, CP, A,
            )  # fmt: skip
        for q in tl.static_range(Q):
            inside = _inside(there, wo, q, Q, Wo)
            mask = inside[:, None] & (co < Co)[None, :]
            # d: the gradient of the stage's normalised output at pixel q of each run
            if SOURCE == EDGES:
                d = tl.load(
                    _places(gradient, n * E + e, ho, wo, co, Ho * Wo, Wo, Co) + q * Co, mask=mask, other=0.0
                ).to(A)
            elif SOURCE == NODES:
                of = _places(gradient, n + (e % T) * N, ho, wo, co, Ho * Wo, Wo, Co)
                d = tl.load(of + q * Co, mask=mask, other=0.0).to(A) * tl.load(gamma + e).to(A)
            else:
                d = tl.zeros((BP, CoP), A)
                for t in range(T):
                    of = _places(gradient, n + t * N, ho, wo, co, Ho * Wo, Wo, Co)
                    d += tl.load(of + q * Co, mask=mask, other=0.0).to(A) * tl.load(gamma + e * T + t).to(A)
            if TRAINING:
                v = tl.load(_places(y, n * E + e, ho, wo, co, Ho * Wo, Wo, Co) + q * Co, mask=mask, other=0.0).to(A)
                v = v * inverse[None, :] + offset[None, :]
                d = d - mean[None, :] - v * mean_y[None, :]
            d = tl.where(mask, d * inverse[None, :], 0.0)
            if POINTWISE:
                if WEIGHTS:
                    by_matrix += _product(tl.trans(d), inputs[q].to(matrix.dtype), DOT, A)
                d = _product(d, matrix, DOT, A)
            mask = inside[:, None] & (c < C)[None, :]
            if POOL == AVG_POOL:
                d = d / _averaged_over(ho, wo + q, H, W, STRIDE).to(A)[:, None]
            if K == 0:  # no depthwise kernel follows: on through the activation
                d, v = _passed_back(d, line + q * IN_PIXEL, mask, scale, shift, ACTIVATION, A)
                total += d
                total_y += d * v
            back = _places(to, n * E + e, ho, wo, c, Ho * Wo, Wo, C) + q * C
            tl.store(back, d.to(to.dtype.element_ty), mask=mask)
    if K == 0:
        _write_sums(to_part + g * 2 * to_part_M + to_part_at + e * C, to_part_M, c, C, total, total_y)
    if WEIGHTS:
        of = weight_part + g.to(tl.int64) * weights_M + pointwise_at + e * Co * C
        place = co[:, None] * C + c[None, :]
        tl.store(of + place, by_matrix, mask=(co < Co)[:, None] & (c < C)[None, :])


@triton.jit
def _with_products(
    taps, gradients, columns, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    """Add to the gradients of a row of taps the products of the runs' gradients and columns."""
    for j in tl.static_range(K):
        tap = taps[j]
        for q in tl.static_range(Q):
            tap += gradients[q] * columns[q * STRIDE + j * DILATION]
        taps = _with(taps, j, tap)
    return taps


@triton.jit(do_not_specialize=["in_M", "weights_M", "depthwise_at", "N", "E", "shared_by", "rounds"])
def taps_backward(
    x, in_norm, in_M, gradient, weight_part, weights_M, depthwise_at, N, E, shared_by, rounds,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    A: tl.constexpr,
):  # fmt: skip
    """Gradients of one row of a depthwise convolution's weights, K taps side by side: this program's part of them,
    weight_part (G, weights_M), from the gradient (N, E, Ho, Wo, C) of the output.

    The K rows over the same pixels are neighbours in the grid, so that they share the cache.
    """
    i, g, e = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = tl.arange(0, CP)
    source = e // shared_by if FIRST else e
    begin, images, scale, shift = _source(in_norm, in_M, source, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    PAD: tl.constexpr = K // 2 * DILATION
    SPAN: tl.constexpr = (Q - 1) * STRIDE + 2 * PAD + 1
    taps = (tl.zeros((BP, CP), A),) * K
    for step in range(rounds):
        there, n, ho, wo = _runs(g * rounds + step, N, Ho, Wo, Q, BP)
        h = ho * STRIDE + i * DILATION - PAD
        row = there & (h >= 0) & (h < H)
        line = _places(x, n, h, wo * STRIDE, c, images, W, IN_PIXEL)
        of = _places(gradient, n * E + e, ho, wo, c, Ho * Wo, Wo, C)
        gradients = _columns(of, there, wo, c, scale, shift, 0, Q, Q, Wo, C, C, 0, False, 0, BP, CP, A)
        columns = _columns(
            line, row, wo * STRIDE, c, scale, shift, -PAD, SPAN, Q * STRIDE, W, IN_PIXEL, C, 0, NORM, ACTIVATION,
            BP, CP, A,
        )  # fmt: skip
        taps = _with_products(taps, gradients, columns, K, STRIDE, DILATION, Q)
    to = weight_part + g.to(tl.int64) * weights_M + depthwise_at + i * K * (E * C) + e * C + c
    for j in tl.static_range(K):
        tl.store(to + j * (E * C), tl.sum(taps[j], 0), mask=c < C)


@triton.jit
def _with_row_back(
    ds, winners, columns, taps, i, BEGIN: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    POOL: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Add to the gradients of runs what flows back through row i of the taps. BEGIN: offset of the first column."""
    PAD: tl.constexpr = K // 2 * DILATION
    for q in tl.static_range(Q):
        d = ds[q]
        for j in tl.static_range(K):
            if (q + PAD - j * DILATION) % STRIDE == 0:
                v = columns[(q + PAD - j * DILATION) // STRIDE - BEGIN]
                if POOL == MAX_POOL:
                    d += tl.where(winners[(q + PAD - j * DILATION) // STRIDE - BEGIN] == i * K + j, v, 0.0)
                elif POOL == AVG_POOL:
                    d += v
                else:
                    d += v * taps[j]
        ds = _with(ds, q, d)
    return ds


@triton.jit(do_not_specialize=["in_M", "part_M", "part_at", "N", "E", "T", "rounds"])
def depthwise_backward(
    x, in_norm, in_M, depthwise, winner, gradient, to, part, part_M, part_at, N, E, T, rounds,
    H: tl.constexpr, W: tl.constexpr, Ho: tl.constexpr, Wo: tl.constexpr,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr, Q: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    POOL: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Backward pass of a stage, second half: through the depthwise convolution or pool and the activation.

    From gradient (N, E, Ho, Wo, C) to the gradient of the stage's input. Edges s · T to s · T + T - 1 read input s: T
    edges share a state in a first stage, otherwise T is 1. With NORM the input was normalised: part (G, 2, M) is this
    program's part of the sums that this BatchNorm needs. With ADD the result is added to what `to` holds.
    """
    g, s = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, CP)
    begin, images, scale, shift = _source(in_norm, in_M, s, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    to += begin
    PAD: tl.constexpr = K // 2 * DILATION
    BEGIN: tl.constexpr = -PAD // STRIDE  # columns of the gradient
    SPAN: tl.constexpr = (Q - 1 + PAD) // STRIDE - BEGIN + 1
    total, total_y = tl.zeros((BP, CP), A), tl.zeros((BP, CP), A)
    for step in range(rounds):
        there, n, h, w = _runs(g * rounds + step, N, H, W, Q, BP)
        ds = (tl.zeros((BP, CP), A),) * Q
        for row in range(T * K):  # all edges that read the input, and all rows of their kernels
            e, i = s * T + row // K, row % K
            # output rows that see input row h through tap row i; with a stride, only every STRIDE-th exists
            ho = h - i * DILATION + PAD
            inside = there & (ho >= 0) & (ho < Ho * STRIDE) & (ho % STRIDE == 0)
            line = _places(gradient, n * E + e, ho // STRIDE, w // STRIDE, c, Ho * Wo, Wo, C)
            columns = _columns(
                line, inside, w // STRIDE, c, scale, shift, BEGIN, SPAN, Q // STRIDE, Wo, C, C, 0, False, 0, BP, CP, A
            )  # fmt: skip
            winners, taps = (), ()
            if POOL == MAX_POOL:
                line = _places(winner, n * E + e, ho // STRIDE, w // STRIDE, c, Ho * Wo, Wo, C)
                winners = _columns(
                    line, inside, w // STRIDE, c, scale, shift, BEGIN, SPAN, Q // STRIDE, Wo, C, C, 0, False, 0,
                    BP, CP, tl.int32,
                )  # fmt: skip
            elif POOL == 0:
                taps = _taps(depthwise + e * C, i, E * C, c, K, C, CP, A)
            ds = _with_row_back(ds, winners, columns, taps, i, BEGIN, K, STRIDE, DILATION, POOL, Q)
        line = _places(x, n, h, w, c, images, W, IN_PIXEL)
        for q in tl.static_range(Q):
            d = ds[q]
            mask = _inside(there, w, q, Q, W)[:, None] & (c < C)[None, :]
            if NORM or ACTIVATION > 0:
                d, v = _passed_back(d, line + q * IN_PIXEL, mask, scale, shift, ACTIVATION, A)
            if NORM:
                total += d
                total_y += d * v
            at = _places(to, n, h, w, c, images, W, IN_PIXEL) + q * IN_PIXEL
            if ADD:
                d += tl.load(at, mask=mask, other=0.0).to(A)
            tl.store(at, d.to(to.dtype.element_ty), mask=mask)
    if NORM:
        _write_sums(part + g * 2 * part_M + part_at + s * C, part_M, c, C, total, total_y)
