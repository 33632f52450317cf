// Depthwise convolutions of a plane with a border of zeros, and their gradients.
//
// A plane is (rows, columns, Cp), channels padded to whole vectors. Kernels work on one vector of channels at a time
// and on several neighbouring output pixels, so that each pixel and each tap is loaded once for all of them. K: size of
// the square kernel; `row` and `tap` are distances in values between rows and columns of taps.

#pragma once

#include <cstdint>
#include <type_traits>

#include "vectors.h"

namespace {

// Calls f with stride and dilation as compile-time constants, or with (0, 0) for a pair without a special version.
template <class F>
void with_steps(int64_t stride, int64_t dilation, F f) {
  typedef std::integral_constant<int, 1> One;
  typedef std::integral_constant<int, 2> Two;
  if (stride == 1 && dilation == 1) return f(One(), One());
  if (stride == 1 && dilation == 2) return f(One(), Two());
  if (stride == 2 && dilation == 1) return f(Two(), One());
  if (stride == 2 && dilation == 2) return f(Two(), Two());
  f(std::integral_constant<int, 0>(), std::integral_constant<int, 0>());
}

// Calls f(q, j, x) for each of P neighbouring output pixels q and each of the K taps j of a row, where x is the vector
// of channels that the tap sees. Each input pixel is loaded once for all output pixels. For a single output pixel only
// the pixels under the taps are loaded, `tap` values apart.
template <class T, int K, int P, int stride, int dilation, class F>
ALWAYS_INLINE void for_taps(const T* p, int64_t Cp, int64_t tap, F f) {
  constexpr int columns = P == 1 ? K : (P - 1) * stride + (K - 1) * dilation + 1;
  unrolled<columns>([&](auto c) ALWAYS {
    hide(p);
    typename Simd<T>::V x = Simd<T>::load(p);
    keep(x);
    p += P == 1 ? tap : Cp;
    if constexpr (P == 1)
      f(std::integral_constant<int, 0>(), c, x);
    else
      unrolled<K>([&](auto j) ALWAYS {
        constexpr int first = c - j * dilation;
        if constexpr (first >= 0 && first % stride == 0 && first / stride < P)
          f(std::integral_constant<int, first / stride>(), j, x);
      });
  });
}

// out[q] = sum over the taps of in * weight, for P neighbouring output pixels and one vector of channels.
template <class T, int K, int P, int stride, int dilation>
inline void depthwise_pixels(const T* in, int64_t in_row, int64_t tap, const T* weight, int64_t Cp, T* out) {
  typedef Simd<T> S;
  typedef typename S::V V;
  V sum[P] = {};
  for (int i = 0; i < K; ++i, in += in_row) {
    V w[K];
    unrolled<K>([&](auto j) ALWAYS {
      w[j] = S::load(weight);
      keep(w[j]);
      weight += Cp;
    });
    for_taps<T, K, P, stride, dilation>(in, Cp, tap, [&](auto q, auto j, const V& x) ALWAYS { sum[q] += x * w[j]; });
  }
  unrolled<P>([&](auto q) ALWAYS { S::store(out + q * Cp, sum[q]); });
}

// Depthwise convolution of a bordered plane: in (rows of in_row values), weight (K * K, Cp), out (Ho, Wo, Cp).
template <class T, int K>
void depthwise(const T* in, int64_t in_row, int64_t stride, int64_t dilation, const T* weight, int64_t Ho, int64_t Wo,
               int64_t Cp, T* out) {
  const int64_t step = stride * Cp, tap = dilation * Cp, row = dilation * in_row;
  with_steps(stride, dilation, [&](auto s, auto d) {
    const auto pixels = [&](auto P, const T* from, const T* w, T* to) {
      depthwise_pixels<T, K, P, s, d>(from, row, tap, w, Cp, to);
    };
    for (int64_t b = 0; b < Cp; b += Simd<T>::L)
      for (int64_t h = 0; h < Ho; ++h) {
        const T* p = in + h * stride * in_row + b;
        T* to = out + h * Wo * Cp + b;
        int64_t w = 0;
        if constexpr (s > 0) {
          for (; w + 8 <= Wo; w += 8) pixels(std::integral_constant<int, 8>(), p + w * step, weight + b, to + w * Cp);
          for (; w + 4 <= Wo; w += 4) pixels(std::integral_constant<int, 4>(), p + w * step, weight + b, to + w * Cp);
        }
        for (; w < Wo; ++w) pixels(std::integral_constant<int, 1>(), p + w * step, weight + b, to + w * Cp);
      }
  });
}

// Transpose of `depthwise` for any stride: scatters the gradient `out` (Ho, Wo, Cp) onto the bordered plane `in`.
template <class T, int K>
void depthwise_scatter(T* in, int64_t in_row, int64_t stride, int64_t dilation, const T* weight, int64_t Ho, int64_t Wo,
                       int64_t Cp, const T* out, int64_t out_row) {
  typedef Simd<T> S;
  for (int64_t h = 0; h < Ho; ++h)
    for (int64_t w = 0; w < Wo; ++w)
      for (int64_t b = 0; b < Cp; b += S::L) {
        const typename S::V g = S::load(out + h * out_row + w * Cp + b);
        T* corner = in + h * stride * in_row + w * stride * Cp + b;
        for (int i = 0; i < K; ++i)
          for (int j = 0; j < K; ++j) {
            T* p = corner + i * dilation * in_row + j * dilation * Cp;
            S::store(p, S::load(p) + g * S::load(weight + (i * K + j) * Cp + b));
          }
      }
}

// Adds in * out of P neighbouring output pixels to the sums of R rows of taps, for one vector of channels. Partial sums
// alternate between PARTS accumulators.
template <class T, int K, int R, int P, int stride, int dilation, int PARTS, class V>
ALWAYS_INLINE void depthwise_products(const T* in, int64_t in_row, int64_t tap, const T* out, int64_t Cp,
                                      V (&sum)[PARTS][R * K]) {
  V g[P];
  unrolled<P>([&](auto q) ALWAYS {
    g[q] = Simd<T>::load(out + q * Cp);
    keep(g[q]);
  });
  unrolled<R>([&](auto i) ALWAYS {
    for_taps<T, K, P, stride, dilation>(
        in, Cp, tap, [&](auto q, auto j, const V& x) ALWAYS { sum[q % PARTS][i * K + j] += x * g[q]; });
    in += in_row;
  });
}

// Gradient of the taps: adds the sum over pixels of in * out to gradient (K * K, Cp), R rows of taps at a time.
template <class T, int K, int R>
void depthwise_weight(const T* in, int64_t in_row, int64_t stride, int64_t dilation, const T* out, int64_t out_row,
                      int64_t Ho, int64_t Wo, int64_t Cp, T* gradient) {
  typedef Simd<T> S;
  typedef typename S::V V;
  static_assert(K % R == 0, "whole groups of rows");
  constexpr int PARTS = R * K < 6 ? 2 : 1;  // partial sums: each addition waits for the one before
  const int64_t step = stride * Cp, tap = dilation * Cp, row = dilation * in_row;
  with_steps(stride, dilation, [&](auto s, auto d) {
    for (int64_t b = 0; b < Cp; b += S::L)
      for (int first = 0; first < K; first += R) {
        V sum[PARTS][R * K] = {};
        for (int64_t h = 0; h < Ho; ++h) {
          const T *p = in + h * stride * in_row + first * row + b, *g = out + h * out_row + b;
          int64_t w = 0;
          if constexpr (s > 0)
            for (; w + 4 <= Wo; w += 4, p += 4 * step, g += 4 * Cp)
              depthwise_products<T, K, R, 4, s, d, PARTS>(p, row, tap, g, Cp, sum);
          for (; w < Wo; ++w, p += step, g += Cp) depthwise_products<T, K, R, 1, s, d, PARTS>(p, row, tap, g, Cp, sum);
        }
        unrolled<R * K>([&](auto i) ALWAYS {
          T* to = gradient + (first * K + i) * Cp + b;
          S::store(to, S::load(to) + (PARTS == 1 ? sum[0][i] : sum[0][i] + sum[PARTS - 1][i]));
        });
      }
  });
}

// Calls f with the size of a square kernel as a compile-time constant; ir.KERNEL_SIZES lists the same sizes.
template <class F>
void with_kernel_size(int64_t k, F f) {
  as_constant<3, 5, 7>(k, f);
}

}  // namespace
