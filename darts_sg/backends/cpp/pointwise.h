// 1x1 convolutions: matrix products of (pixels, channels) planes, and the gradient of their weights.
//
// The kernels hold up to three vectors of output channels for several pixels in registers. Where several images stand
// side by side in one vector, B channels each, the matrix is block diagonal, and only its blocks are computed.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "vectors.h"

namespace {

// Calls f with the fraction of a vector that the last of C channels need: a narrow last vector takes half the time.
template <class T, class F>
void with_last(int64_t C, F f) {
  constexpr int64_t L = Simd<T>::L;
  const int64_t lanes = (C - 1) % L + 1;
  if constexpr (BYTES == 64) {
    if (lanes <= L / 4) return f(std::integral_constant<int, QUARTER>());
    if (lanes <= L / 2) return f(std::integral_constant<int, HALF>());
  }
  f(std::integral_constant<int, WHOLE>());
}

// B neighbouring vectors in registers, the last of which may be a fraction of one.
template <class T, int B, int Fraction>
struct VectorRow {
  typedef Simd<T> S;
  typedef Simd<T, BYTES * Fraction / WHOLE> Last;
  static constexpr int64_t at = (B - 1) * S::L;  // first channel of the last vector
  typename S::V whole[std::max(B - 1, 1)] = {};
  typename Last::V last = {};
  ALWAYS_INLINE void load(const T* p) {
    unrolled<B - 1>([&](auto b) ALWAYS {
      whole[b] = S::load(p + b * S::L);
      keep(whole[b]);
    });
    last = Last::load(p + at);
    keep(last);
  }
  ALWAYS_INLINE void add(T x, const VectorRow& row) {
    unrolled<B - 1>([&](auto b) ALWAYS { whole[b] += x * row.whole[b]; });
    last += x * row.last;
  }
  ALWAYS_INLINE void store(T* p) const {
    unrolled<B - 1>([&](auto b) ALWAYS { S::store(p + b * S::L, whole[b]); });
    Last::store(p + at, last);
  }
  ALWAYS_INLINE void add_to(T* p) const {
    unrolled<B - 1>([&](auto b) ALWAYS { S::store(p + b * S::L, S::load(p + b * S::L) + whole[b]); });
    Last::store(p + at, Last::load(p + at) + last);
  }
};

// `pointwise` for P pixels and B vectors of output channels; weight (C, B * L).
template <class T, int P, int B, int Fraction>
inline void pointwise_pixels(const T* in, int64_t in_Cp, int64_t C, const T* weight, int64_t Cp, T* out) {
  VectorRow<T, B, Fraction> sum[P], w;
  for (int64_t c = 0; c < C; ++c) {
    w.load(weight + c * B * Simd<T>::L);
    unrolled<P>([&](auto q) ALWAYS { sum[q].add(in[q * in_Cp + c], w); });
  }
  unrolled<P>([&](auto q) ALWAYS { sum[q].store(out + q * Cp); });
}

// `pointwise` for B vectors of output channels.
template <class T, int B, int Fraction>
inline void pointwise_vectors(const T* in, int64_t in_Cp, int64_t C, const T* weight, int64_t Cp, int64_t pixels,
                              T* out) {
  constexpr int P = std::min<int>(8, (REGISTERS - 1 - B) / B);  // registers beside the sums: B weights and one value
  int64_t p = 0;
  for (; p + P <= pixels; p += P)
    pointwise_pixels<T, P, B, Fraction>(in + p * in_Cp, in_Cp, C, weight, Cp, out + p * Cp);
  // the pixels left, all at once: the fewer at a time, the more often the weights are loaded
  as_constant<7, 6, 5, 4, 3, 2, 1>(pixels - p, [&](auto left) {
    if constexpr (left < P) pointwise_pixels<T, left, B, Fraction>(in + p * in_Cp, in_Cp, C, weight, Cp, out + p * Cp);
  });
}

// Splits C channels into rows of at most three vectors and calls f(first channel, number of vectors, fraction of the
// last vector) for each.
template <class T, class F>
void for_vector_rows(int64_t C, F f) {
  constexpr int64_t L = Simd<T>::L;
  const auto of_size = [&](int64_t b, int64_t size, auto fraction) {
    as_constant<3, 2, 1>(size, [&](auto B) { f(b, B, fraction); });
  };
  for (int64_t b = 0, left = num_vectors<T>(C), B; left > 0; b += B * L, left -= B) {
    B = left == 4 ? 2 : std::min<int64_t>(left, 3);
    if (B < left)
      of_size(b, B, std::integral_constant<int, WHOLE>());
    else
      with_last<T>(C, [&](auto fraction) { of_size(b, B, fraction); });
  }
}

// Where the columns of a matrix (C, Co) lie in panels: the columns that `for_vector_rows` takes together are a matrix
// (C, B * L) of their own, whose rows follow each other, so that the processor can prefetch them.
template <class T>
struct Panels {
  std::vector<int64_t> first, step;  // of each column: its first value, and the distance to the next
  Panels(int64_t C, int64_t Co) : first(Co), step(Co) {
    for_vector_rows<T>(Co, [&](int64_t b, auto B, auto) {
      constexpr int64_t width = B * Simd<T>::L;
      for (int64_t o = b; o < std::min(b + width, Co); ++o) first[o] = b * C + o - b, step[o] = width;
    });
  }
};

// out = in * weight: in (pixels, in_Cp) of which the first C columns count, weight (C, Cp) in panels, out (pixels, Cp)
// of which the first Co columns are computed.
template <class T>
void pointwise(const T* in, int64_t in_Cp, int64_t C, const T* weight, int64_t Co, int64_t Cp, int64_t pixels, T* out) {
  for_vector_rows<T>(Co, [&](int64_t b, auto B, auto fraction) {
    pointwise_vectors<T, B, fraction>(in, in_Cp, C, weight + b * C, Cp, pixels, out + b);
  });
}

// `pointwise_weight` for B vectors of input channels, Q rows of the gradient at a time.
template <class T, int Q, int B, int Fraction>
inline void pointwise_weight_vectors(const T* out, int64_t out_Cp, int64_t C, const T* in, int64_t Cp, int64_t pixels,
                                     T* gradient) {
  for (int64_t c = 0; c < C; c += Q) {
    VectorRow<T, B, Fraction> sum[Q], v;
    const T *o = out + c, *i = in;
    for (int64_t p = 0; p < pixels; ++p, o += out_Cp, i += Cp) {
      v.load(i);
      unrolled<Q>([&](auto q) ALWAYS { sum[q].add(o[q], v); });
    }
    unrolled<Q>([&](auto q) ALWAYS {
      if (c + q < C) sum[q].add_to(gradient + (c + q) * Cp);
    });
  }
}

// gradient += transposed(out) * in: out (pixels, out_Cp) of which the first C columns count, in (pixels, Cp) of which
// the first Ci columns count, gradient (C, Cp).
template <class T>
void pointwise_weight(const T* out, int64_t out_Cp, int64_t C, const T* in, int64_t Ci, int64_t Cp, int64_t pixels,
                      T* gradient) {
  for_vector_rows<T>(Ci, [&](int64_t b, auto B, auto fraction) {
    constexpr int Q = REGISTERS >= 32 || B == 1 ? 8 : 4;  // divides out_Cp
    const int64_t rest = C % Q, few = Q > 4 && rest <= 4 ? rest : 0;
    pointwise_weight_vectors<T, Q, B, fraction>(out, out_Cp, C - few, in + b, Cp, pixels, gradient + b);
    pointwise_weight_vectors<T, 4, B, fraction>(out + C - few, out_Cp, few, in + b, Cp, pixels,
                                                gradient + (C - few) * Cp + b);
  });
}

// Calls f with B as a compile-time constant if blocks of B channels have a kernel of their own.
template <class T, class F>
ALWAYS_INLINE void with_block(int64_t B, F f) {
  as_constant<2, 4, 8>(B, [&](auto constant) {
    if constexpr (constant < Simd<T>::L) f(constant);
  });
}

// In each block of B channels, channel `shift` (turn = 0), or the one `shift` further on, around the block (turn = 1).
template <class T, int B, int shift, int turn, int... I>
ALWAYS_INLINE typename Simd<T>::V in_blocks(typename Simd<T>::V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I / B * B + (turn ? (I + shift) % B : shift))...);
}
template <class T, int B, int shift, int turn>
ALWAYS_INLINE typename Simd<T>::V in_blocks(typename Simd<T>::V v) {
  return in_blocks<T, B, shift, turn>(v, std::make_integer_sequence<int, Simd<T>::L>());
}

// out = in * weight for one vector of channels in blocks of B. weight (B, L): input channel c of each block by output
// channel.
template <class T, int B>
void block_pointwise(const T* in, const T* weight, int64_t pixels, T* out) {
  typedef Simd<T> S;
  typedef typename S::V V;
  V w[B];
  unrolled<B>([&](auto c) ALWAYS {
    w[c] = S::load(weight + c * S::L);
    keep(w[c]);
  });
  const auto pixels_from = [&](auto P, int64_t p) ALWAYS {
    V x[P], sum[P] = {};
    unrolled<P>([&](auto q) ALWAYS { x[q] = S::load(in + (p + q) * S::L); });
    unrolled<B>([&](auto c) ALWAYS {
      unrolled<P>([&](auto q) ALWAYS { sum[q] += in_blocks<T, B, c, 0>(x[q]) * w[c]; });
    });
    unrolled<P>([&](auto q) ALWAYS { S::store(out + (p + q) * S::L, sum[q]); });
  };
  constexpr int P = REGISTERS >= 32 ? 4 : 2;
  int64_t p = 0;
  for (; p + P <= pixels; p += P) pixels_from(std::integral_constant<int, P>(), p);
  for (; p < pixels; ++p) pixels_from(std::integral_constant<int, 1>(), p);
}

// Gradient of the blocks: gradient[s][c] += the sum over pixels of out[(c + s) % B] * in[c], for each block; (B, L).
template <class T, int B>
void block_pointwise_weight(const T* out, const T* in, int64_t pixels, T* gradient) {
  typedef Simd<T> S;
  typedef typename S::V V;
  constexpr int PARTS = B < 8 ? 2 : 1;  // partial sums: each addition waits for the one before
  V sum[PARTS][B] = {};
  const auto add = [&](auto part, int64_t p) ALWAYS {
    const V x = S::load(in + p * S::L), g = S::load(out + p * S::L);
    unrolled<B>([&](auto s) ALWAYS { sum[part][s] += in_blocks<T, B, s, 1>(g) * x; });
  };
  int64_t p = 0;
  for (; p + PARTS <= pixels; p += PARTS) unrolled<PARTS>([&](auto part) ALWAYS { add(part, p + part); });
  for (; p < pixels; ++p) add(std::integral_constant<int, 0>(), p);
  unrolled<B>([&](auto s) ALWAYS {
    T* to = gradient + s * S::L;
    S::store(to, S::load(to) + (PARTS == 1 ? sum[0][s] : sum[0][s] + sum[PARTS - 1][s]));
  });
}

}  // namespace
