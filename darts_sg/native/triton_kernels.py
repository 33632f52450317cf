"""Triton kernels for GPUs: what chains.cpp does on a CPU, one stage of an operation on all edges of a batch at a time.

All tensors of stages are (N, E, H, W, C): the channels of an edge side by side, the images outermost. A program works
on BP pixels, counted over all images, of an edge with its CP ≥ C channels (a power of two), `rounds` times; what is
summed over pixels is summed in the program and written as its part, so that the same sums are added in the same order
each time. Arithmetic is done in float32 (float64 for float64 tensors) whatever the tensors hold.
"""

import triton
import triton.language as tl
from triton.language.core import constexpr

EDGES, NODES, MIXED_NODES = constexpr(0), constexpr(1), constexpr(2)
MAX_POOL, AVG_POOL = constexpr(1), constexpr(2)


@triton.jit
def _activated(v, ACTIVATION: tl.constexpr):
    if ACTIVATION >= 1:
        v = tl.maximum(v, 0.0)
    if ACTIVATION == 2:
        v = tl.minimum(v, 6.0)
    return v


@triton.jit
def _passed_back(gradient, v, ACTIVATION: tl.constexpr):
    """The gradient of v, from that of the activated v."""
    if ACTIVATION == 1:
        gradient = tl.where(v > 0.0, gradient, 0.0)
    if ACTIVATION == 2:
        gradient = tl.where((v > 0.0) & (v < 6.0), gradient, 0.0)
    return gradient


@triton.jit
def _input(
    x, at, inside, c, C: tl.constexpr, scale, shift, NORM: tl.constexpr, ACTIVATION: tl.constexpr, A: tl.constexpr
):
    """The activated input (BP, CP) at pixels that begin at the offsets `at` (BP,); zero where not `inside`."""
    mask = inside[:, None] & (c < C)[None, :]
    v = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
    if NORM:
        v = v * scale[None, :] + shift[None, :]
    v = _activated(v, ACTIVATION)
    if NORM:
        v = tl.where(mask, v, 0.0)
    return v


@triton.jit
def _pixels(block, N, pixels, BP: tl.constexpr):
    """The BP pixels of a block: whether they are there, their images, and their numbers within these."""
    p = block * BP + tl.arange(0, BP)
    return p < N * pixels, (p // pixels).to(tl.int64), p % pixels


@triton.jit
def _source(
    norm, M, source, c, E, H, W, C: tl.constexpr, CP: tl.constexpr,
    FIRST: tl.constexpr, NORM: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Of the state (FIRST) or edge that a stage reads: where it begins, the pixels from one image to the next, and the
    scale and shift of its BatchNorm, if it has one."""
    scale, shift = tl.full((CP,), 1.0, A), tl.zeros((CP,), A)
    if NORM:
        scale = tl.load(norm + source * C + c, mask=c < C, other=0.0).to(A)
        shift = tl.load(norm + M + source * C + c, mask=c < C, other=0.0).to(A)
    if FIRST:
        begin = source * C
        images = H * W
    else:
        begin = source.to(tl.int64) * (H * W) * C
        images = E * H * W
    return begin, images, scale, shift


@triton.jit
def _convolved(
    x, n, ho, wo, there, c, C: tl.constexpr, H, W, in_images, IN_PIXEL: tl.constexpr, scale, shift, weight, between,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    BP: tl.constexpr, CP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """The depthwise convolution of the activated input at pixels (ho, wo) of images n: (BP, CP)."""
    total = tl.zeros((BP, CP), A)
    for i in range(K):
        h = ho * STRIDE + (i - K // 2) * DILATION
        for j in tl.static_range(K):
            w = wo * STRIDE + (j - K // 2) * DILATION
            inside = there & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            at = (n * in_images + h * W + w) * IN_PIXEL
            v = _input(x, at, inside, c, C, scale, shift, NORM, ACTIVATION, A)
            tap = tl.load(weight + (i * K + j) * between + c, mask=c < C, other=0.0).to(A)
            total += v * tap[None, :]
    return total


@triton.jit(do_not_specialize=["in_M", "part_M", "part_at", "N", "E", "shared_by", "H", "W", "Ho", "Wo", "rounds"])
def stage_forward(
    x, in_norm, in_M, depthwise, pointwise, y, winner, part, part_M, part_at,
    N, E, shared_by, H, W, Ho, Wo, rounds,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, Co: tl.constexpr, CP: tl.constexpr,
    CoP: tl.constexpr, BP: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, POOL: tl.constexpr, POINTWISE: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """y before its BatchNorm, and this program's part of its sums and sums of squares over pixels: part (G, 2, M)."""
    g, e = tl.program_id(0), tl.program_id(1)
    c, co = tl.arange(0, CP), tl.arange(0, CoP)
    source = e // shared_by if FIRST else e
    begin, in_images, scale, shift = _source(in_norm, in_M, source, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    if K > 0 and POOL == 0:
        depthwise += e * C
    if POINTWISE:
        place = e * Co * C + co[None, :] * C + c[:, None]
        matrix = tl.load(pointwise + place, mask=(co < Co)[None, :] & (c < C)[:, None], other=0.0)
    total, squares = tl.zeros((BP, CoP), A), tl.zeros((BP, CoP), A)
    for step in range(rounds):
        there, n, r = _pixels(g * rounds + step, N, Ho * Wo, BP)
        ho, wo = r // Wo, r % Wo
        if POOL == MAX_POOL:
            out = tl.full((BP, CP), float("-inf"), A)
            best = tl.zeros((BP, CP), tl.int32)
            for i in range(K):
                h = ho * STRIDE + (i - K // 2)
                for j in tl.static_range(K):
                    w = wo * STRIDE + (j - K // 2)
                    inside = there & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                    at = (n * in_images + h * W + w) * IN_PIXEL
                    v = _input(x, at, inside, c, C, scale, shift, False, 0, A)
                    larger = inside[:, None] & (v > out)
                    out = tl.where(larger, v, out)
                    best = tl.where(larger, i * K + j, best)
            out = tl.where(there[:, None], out, 0.0)
        elif POOL == AVG_POOL:
            out = tl.zeros((BP, CP), A)
            count = tl.zeros((BP,), A)
            for i in range(K):
                h = ho * STRIDE + (i - K // 2)
                for j in tl.static_range(K):
                    w = wo * STRIDE + (j - K // 2)
                    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
                    at = (n * in_images + h * W + w) * IN_PIXEL
                    out += _input(x, at, inside & there, c, C, scale, shift, False, 0, A)
                    count += inside.to(A)
            out = out / count[:, None]
        elif K > 0:
            out = _convolved(
                x, n, ho, wo, there, c, C, H, W, in_images, IN_PIXEL, scale, shift, depthwise, E * C,
                K, STRIDE, DILATION, NORM, ACTIVATION, BP, CP, A,
            )  # fmt: skip
        else:
            out = _input(x, (n * in_images + r) * IN_PIXEL, there, c, C, scale, shift, NORM, ACTIVATION, A)
        if POINTWISE:
            out = tl.dot(out.to(matrix.dtype), matrix, input_precision="ieee", out_dtype=A)
        held = out.to(y.dtype.element_ty)
        to = ((n * E + e) * (Ho * Wo) + r) * Co
        mask = there[:, None] & (co < Co)[None, :]
        tl.store(y + to[:, None] + co[None, :], held, mask=mask)
        if POOL == MAX_POOL:
            tl.store(winner + to[:, None] + co[None, :], best.to(tl.int8), mask=mask)
        out = tl.where(mask, held.to(A), 0.0)
        total += out
        squares += out * out
    place = part + g * 2 * part_M + part_at + e * Co + co
    tl.store(place, tl.sum(total, 0), mask=co < Co)
    tl.store(place + part_M, tl.sum(squares, 0), mask=co < Co)


@triton.jit(do_not_specialize=["M", "G", "count"])
def statistics(
    part, norm, stats, M, G, count, EPS: tl.constexpr, B: tl.constexpr, R: tl.constexpr, A: tl.constexpr
):  # fmt: skip
    """From the parts (G, 2, M) of the sums: norm (2, M), y · norm[0] + norm[1] being normalised; stats (2, M), the mean
    and the unbiased variance."""
    m = tl.program_id(0) * B + tl.arange(0, B)
    total, squares = tl.zeros((B,), tl.float64), tl.zeros((B,), tl.float64)
    for start in range(0, G, R):
        g = start + tl.arange(0, R)
        at = part + g[:, None] * 2 * M + m[None, :]
        mask = (g < G)[:, None] & (m < M)[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float64), 0)
        squares += tl.sum(tl.load(at + M, mask=mask, other=0.0).to(tl.float64), 0)
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    inverse = 1.0 / tl.sqrt(variance + EPS)
    tl.store(norm + m, inverse.to(A), mask=m < M)
    tl.store(norm + M + m, (-mean * inverse).to(A), mask=m < M)
    tl.store(stats + m, mean.to(A), mask=m < M)
    tl.store(stats + M + m, (variance * count / (count - 1)).to(A), mask=m < M)


@triton.jit(do_not_specialize=["norm_M", "N", "P", "T"])
def mix_forward(
    chains, pools, x, norm, norm_M, gamma, onto, nodes, N, P,
    CHAINS: tl.constexpr, POOLS: tl.constexpr, IDENTITY: tl.constexpr, ONTO: tl.constexpr, S: tl.constexpr, T,
    C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """nodes (T, N, P, C): the sum of gamma times the normalised outputs of chains on edges, (CHAINS, N, E, P, C), of
    pools on states, (POOLS, N, S, P, C), and of the states themselves; and, with ONTO, of `onto` (T, N, P, C)."""
    t = tl.program_id(1)
    there, n, r = _pixels(tl.program_id(0), N, P, BP)
    c = tl.arange(0, CP)
    mask = there[:, None] & (c < C)[None, :]
    E = S * T
    total = tl.zeros((BP, CP), A)
    for o in tl.static_range(CHAINS):
        for s in tl.static_range(S):
            e = s * T + t
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


@triton.jit(do_not_specialize=["norm_M", "N", "P", "rounds", "T"])
def mix_backward(
    chains, pools, x, norm, norm_M, gradient, part, N, P, rounds,
    CHAINS: tl.constexpr, POOLS: tl.constexpr, IDENTITY: tl.constexpr, S: tl.constexpr, T,
    C: tl.constexpr, CP: tl.constexpr, RP: tl.constexpr, BP: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """part (G, RP, E, C): the program's sums over pixels of the gradient of the node times each operation's normalised
    output; in row RP - 1 the sum of the gradient alone."""
    g, e = tl.program_id(0), tl.program_id(1)
    s, t = e // T, e % T
    E = S * T
    c = tl.arange(0, CP)
    row = tl.arange(0, RP)
    sums = tl.zeros((RP, CP), A)
    for step in range(rounds):
        there, n, r = _pixels(g * rounds + step, N, P, BP)
        mask = there[:, None] & (c < C)[None, :]
        at = ((n + t * N) * P + r) * C
        d = tl.load(gradient + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
        sums += tl.where((row == RP - 1)[:, None], tl.sum(d, 0)[None, :], 0.0)
        for o in tl.static_range(CHAINS):
            scale = tl.load(norm + (o * E + e) * C + c, mask=c < C, other=0.0).to(A)
            shift = tl.load(norm + norm_M + (o * E + e) * C + c, mask=c < C, other=0.0).to(A)
            at = ((n + o * N) * E + e) * P * C + r * C
            v = tl.load(chains + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            v = v * scale[None, :] + shift[None, :]
            sums += tl.where((row == o)[:, None], tl.sum(d * v, 0)[None, :], 0.0)
        for i in tl.static_range(POOLS):
            at = ((n + i * N) * S + s) * P * C + r * C
            v = tl.load(pools + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            place = norm + CHAINS * E * C + (i * S + s) * C + c
            v = v * tl.load(place, mask=c < C, other=0.0).to(A)[None, :]
            v += tl.load(place + norm_M, mask=c < C, other=0.0).to(A)[None, :]
            sums += tl.where((row == CHAINS + i)[:, None], tl.sum(d * v, 0)[None, :], 0.0)
        if IDENTITY:
            at = (n * P + r) * (S * C) + s * C
            v = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            sums += tl.where((row == CHAINS + POOLS)[:, None], tl.sum(d * v, 0)[None, :], 0.0)
    to = ((g * RP + row) * E + e) * C
    tl.store(part + to[:, None] + c[None, :], sums, mask=(c < C)[None, :])


@triton.jit(do_not_specialize=["gamma_at", "N", "P", "T"])
def identity_backward(
    gradient, gamma, gamma_at, to, N, P, S: tl.constexpr, T, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr,
    A: tl.constexpr,
):  # fmt: skip
    """to (N, P, S · C): what the nodes give back to the states that they take as they are; the gamma of
    the identity, (E,), begins at gamma_at."""
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
        "H",
        "W",
        "Ho",
        "Wo",
        "count",
        "rounds",
    ]
)
def stage_backward(
    x, in_norm, in_M, depthwise, pointwise, y, norm, norm_M,
    gradient, gamma, gamma_at, sums, sums_y, to, to_part, to_part_M, to_part_at, weight_part, weights_M, pointwise_at,
    N, E, T, shared_by, H, W, Ho, Wo, count, rounds,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, Co: tl.constexpr, CP: tl.constexpr,
    CoP: tl.constexpr, BP: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, POOL: tl.constexpr, POINTWISE: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, TRAINING: tl.constexpr, SOURCE: tl.constexpr,
    WEIGHTS: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Back through BatchNorm and the 1×1 convolution, with this program's part of its weights' gradients: weight_part
    (G, weights_M). The gamma of the operation begins at gamma_at.

    Writes the gradient of what the depthwise convolution or pool gave, (N, E, Ho, Wo, C), or, for a stage that has
    neither, of the normalised output of the stage before, with its sums for the BatchNorm there: to_part (G, 2, M).
    """
    g, e = tl.program_id(0), tl.program_id(1)
    c, co = tl.arange(0, CP), tl.arange(0, CoP)
    gamma += gamma_at
    source = e // shared_by if FIRST else e
    begin, in_images, scale, shift = _source(in_norm, in_M, source, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    if K > 0 and POOL == 0:
        depthwise += e * C
    if POINTWISE:
        row = e * Co * C + co[:, None] * C
        matrix = tl.load(pointwise + row + c[None, :], mask=(co < Co)[:, None] & (c < C)[None, :], other=0.0)
    inverse = tl.load(norm + e * Co + co, mask=co < Co, other=0.0).to(A)
    offset = tl.load(norm + norm_M + e * Co + co, mask=co < Co, other=0.0).to(A)
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
        there, n, r = _pixels(g * rounds + step, N, Ho * Wo, BP)
        ho, wo = r // Wo, r % Wo
        mask = there[:, None] & (co < Co)[None, :]
        at = ((n * E + e) * (Ho * Wo) + r) * Co
        if SOURCE == EDGES:
            d = tl.load(gradient + at[:, None] + co[None, :], mask=mask, other=0.0).to(A)
        elif SOURCE == NODES:
            of = ((n + (e % T) * N) * (Ho * Wo) + r) * Co
            d = tl.load(gradient + of[:, None] + co[None, :], mask=mask, other=0.0).to(A)
            d = d * tl.load(gamma + e).to(A)
        else:
            d = tl.zeros((BP, CoP), A)
            for t in range(T):
                of = ((n + t * N) * (Ho * Wo) + r) * Co
                part = tl.load(gradient + of[:, None] + co[None, :], mask=mask, other=0.0).to(A)
                d += part * tl.load(gamma + e * T + t).to(A)
        if TRAINING:
            v = tl.load(y + at[:, None] + co[None, :], mask=mask, other=0.0).to(A)
            v = v * inverse[None, :] + offset[None, :]
            d = d - mean[None, :] - v * mean_y[None, :]
        d = tl.where(mask, d * inverse[None, :], 0.0)
        if POINTWISE:
            if WEIGHTS:
                if K > 0:
                    v = _convolved(
                        x, n, ho, wo, there, c, C, H, W, in_images, IN_PIXEL, scale, shift, depthwise, E * C,
                        K, STRIDE, DILATION, NORM, ACTIVATION, BP, CP, A,
                    )  # fmt: skip
                else:
                    v = _input(x, (n * in_images + r) * IN_PIXEL, there, c, C, scale, shift, NORM, ACTIVATION, A)
                held = tl.trans(d).to(matrix.dtype)
                by_matrix += tl.dot(held, v.to(matrix.dtype), input_precision="ieee", out_dtype=A)
            d = tl.dot(d.to(matrix.dtype), matrix, input_precision="ieee", out_dtype=A)
        mask = there[:, None] & (c < C)[None, :]
        at = ((n * E + e) * (Ho * Wo) + r) * C
        if K > 0:
            if POOL == AVG_POOL:
                rows = tl.minimum(ho * STRIDE + 1, H - 1) - tl.maximum(ho * STRIDE - 1, 0) + 1
                columns = tl.minimum(wo * STRIDE + 1, W - 1) - tl.maximum(wo * STRIDE - 1, 0) + 1
                d = d / (rows * columns).to(A)[:, None]
        else:
            of = (n * in_images + r) * IN_PIXEL
            v = tl.load(x + of[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            v = v * scale[None, :] + shift[None, :]
            d = tl.where(mask, _passed_back(d, v, ACTIVATION), 0.0)
            total += d
            total_y += d * v
        tl.store(to + at[:, None] + c[None, :], d.to(to.dtype.element_ty), mask=mask)
    if K == 0:
        of = to_part + g * 2 * to_part_M + to_part_at + e * C + c
        tl.store(of, tl.sum(total, 0), mask=c < C)
        tl.store(of + to_part_M, tl.sum(total_y, 0), mask=c < C)
    if WEIGHTS and POINTWISE:
        of = weight_part + g.to(tl.int64) * weights_M + pointwise_at + e * Co * C
        place = co[:, None] * C + c[None, :]
        tl.store(of + place, by_matrix, mask=(co < Co)[:, None] & (c < C)[None, :])


@triton.jit(
    do_not_specialize=["in_M", "weights_M", "depthwise_at", "N", "E", "shared_by", "H", "W", "Ho", "Wo", "rounds"]
)
def taps_backward(
    x, in_norm, in_M, gradient, weight_part, weights_M, depthwise_at, N, E, shared_by, H, W, Ho, Wo, rounds,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    A: tl.constexpr,
):  # fmt: skip
    """The program's part of the gradients of a row of a depthwise convolution's weights, K taps side by side, from the
    gradient (N, E, Ho, Wo, C) of its output: weight_part (G, weights_M)."""
    g, e, i = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = tl.arange(0, CP)
    source = e // shared_by if FIRST else e
    begin, in_images, scale, shift = _source(in_norm, in_M, source, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    tap_0, tap_1, tap_2 = tl.zeros((BP, CP), A), tl.zeros((BP, CP), A), tl.zeros((BP, CP), A)
    tap_3, tap_4, tap_5, tap_6 = tap_0, tap_0, tap_0, tap_0
    for step in range(rounds):
        there, n, r = _pixels(g * rounds + step, N, Ho * Wo, BP)
        ho, wo = r // Wo, r % Wo
        at = ((n * E + e) * (Ho * Wo) + r) * C
        d = tl.load(gradient + at[:, None] + c[None, :], mask=there[:, None] & (c < C)[None, :], other=0.0).to(A)
        h = ho * STRIDE + (i - K // 2) * DILATION
        for j in tl.static_range(K):
            w = wo * STRIDE + (j - K // 2) * DILATION
            inside = there & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            of = (n * in_images + h * W + w) * IN_PIXEL
            v = d * _input(x, of, inside, c, C, scale, shift, NORM, ACTIVATION, A)
            if j == 0:
                tap_0 += v
            elif j == 1:
                tap_1 += v
            elif j == 2:
                tap_2 += v
            elif j == 3:
                tap_3 += v
            elif j == 4:
                tap_4 += v
            elif j == 5:
                tap_5 += v
            else:
                tap_6 += v
    to = weight_part + g.to(tl.int64) * weights_M + depthwise_at + i * K * (E * C) + e * C + c
    tl.store(to, tl.sum(tap_0, 0), mask=c < C)
    tl.store(to + E * C, tl.sum(tap_1, 0), mask=c < C)
    tl.store(to + 2 * E * C, tl.sum(tap_2, 0), mask=c < C)
    if K >= 5:
        tl.store(to + 3 * E * C, tl.sum(tap_3, 0), mask=c < C)
        tl.store(to + 4 * E * C, tl.sum(tap_4, 0), mask=c < C)
    if K >= 7:
        tl.store(to + 5 * E * C, tl.sum(tap_5, 0), mask=c < C)
        tl.store(to + 6 * E * C, tl.sum(tap_6, 0), mask=c < C)


@triton.jit(do_not_specialize=["in_M", "part_M", "part_at", "N", "E", "T", "H", "W", "Ho", "Wo", "rounds"])
def depthwise_backward(
    x, in_norm, in_M, depthwise, winner, gradient, to,
    part, part_M, part_at, N, E, T, H, W, Ho, Wo, rounds,
    FIRST: tl.constexpr, IN_PIXEL: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    POOL: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Back through the depthwise convolution or pool and the activation, from gradient (N, E, Ho, Wo, C).

    Edges e · T to e · T + T - 1 have the input e (T = 1 but for the first stage). With NORM, also the sums of the
    BatchNorm that the input went through: part (G, 2, M).
    """
    g, s = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, CP)
    begin, in_images, scale, shift = _source(in_norm, in_M, s, c, E, H, W, C, CP, FIRST, NORM, A)
    x += begin
    to += begin
    total, total_y = tl.zeros((BP, CP), A), tl.zeros((BP, CP), A)
    for step in range(rounds):
        there, n, r = _pixels(g * rounds + step, N, H * W, BP)
        h, w = r // W, r % W
        d = tl.zeros((BP, CP), A)
        for t in range(T):
            e = s * T + t
            for i in range(K):
                ho = h - (i - K // 2) * DILATION
                for j in tl.static_range(K):
                    wo = w - (j - K // 2) * DILATION
                    inside = there & (ho >= 0) & (ho < Ho * STRIDE) & (wo >= 0) & (wo < Wo * STRIDE)
                    if STRIDE == 2:
                        inside = inside & (ho % 2 == 0) & (wo % 2 == 0)
                    at = ((n * E + e) * (Ho * Wo) + (ho // STRIDE) * Wo + wo // STRIDE) * C
                    mask = inside[:, None] & (c < C)[None, :]
                    v = tl.load(gradient + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
                    if POOL == MAX_POOL:
                        won = tl.load(winner + at[:, None] + c[None, :], mask=mask, other=-1)
                        v = tl.where(won == i * K + j, v, 0.0)
                    if POOL == 0:
                        tap = tl.load(depthwise + (i * K + j) * (E * C) + e * C + c, mask=c < C, other=0.0).to(A)
                        v = v * tap[None, :]
                    d += v
        mask = there[:, None] & (c < C)[None, :]
        at = (n * in_images + r) * IN_PIXEL
        if NORM or ACTIVATION > 0:
            v = tl.load(x + at[:, None] + c[None, :], mask=mask, other=0.0).to(A)
            v = v * scale[None, :] + shift[None, :]
            d = tl.where(mask, _passed_back(d, v, ACTIVATION), 0.0)
        if NORM:
            total += d
            total_y += d * v
        at = to + at[:, None] + c[None, :]
        if ADD:
            d += tl.load(at, mask=mask, other=0.0).to(A)
        tl.store(at, d.to(to.dtype.element_ty), mask=mask)
    if NORM:
        at = part + g * 2 * part_M + part_at + s * C + c
        tl.store(at, tl.sum(total, 0), mask=c < C)
        tl.store(at + part_M, tl.sum(total_y, 0), mask=c < C)
