// 3x3 max and average pools of a plane with a border of one pixel, and their gradients.
//
// The border is zero for an average and -infinity for a maximum. As in PyTorch, the first of equal maxima wins, NaN
// beats all numbers, and an average counts only pixels inside the image.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "vectors.h"

namespace {

// The largest of the nine pixels from `corner` on, and its place in the window (0 to 8).
template <class T>
inline void first_maximum(const T* corner, int64_t row, int64_t Cp, typename Simd<T>::V& best,
                          typename Simd<T>::V& tap) {
  typedef typename Simd<T>::V V;
  best = Simd<T>::load(corner);
  tap = V{};
  for (int i = 1; i < 9; ++i) {
    const V v = Simd<T>::load(corner + i / 3 * row + i % 3 * Cp), here = V{} + static_cast<T>(i);
    const auto larger = (v > best) | (v != v);  // NaN wins
    best = larger ? v : best;
    tap = larger ? here : tap;
  }
}

// Number of rows (or columns) of the window at h that lie inside the image.
inline int64_t pixels_inside(int64_t h, int64_t stride, int64_t H) {
  return std::min(h * stride + 2, H) - std::max<int64_t>(h * stride - 1, 0);
}

// Computes output rows [from, to) of a pool; `in` is the first row of the first window.
template <class T>
void pool(const T* in, int64_t row, int64_t stride, int64_t kind, int64_t from, int64_t to, int64_t H, int64_t W,
          int64_t Wo, int64_t Cp, T* out) {
  typedef typename Simd<T>::V V;
  for (int64_t h = from; h < to; ++h)
    for (int64_t w = 0; w < Wo; ++w)
      for (int64_t b = 0; b < Cp; b += Simd<T>::L) {
        const T* corner = in + (h - from) * stride * row + w * stride * Cp + b;
        V v = {}, tap;
        if (kind == MAX) {
          first_maximum<T>(corner, row, Cp, v, tap);
        } else {
          for (int i = 0; i < 9; ++i) v += Simd<T>::load(corner + i / 3 * row + i % 3 * Cp);
          v /= static_cast<T>(pixels_inside(h, stride, H) * pixels_inside(w, stride, W));
        }
        Simd<T>::store(out + ((h - from) * Wo + w) * Cp + b, v);
      }
}

// For `rows` rows of W windows at stride 1: the place of each window's maximum, as `pool_gather` needs it.
template <class T>
void find_maxima(const T* in, int64_t row, int64_t rows, int64_t W, int64_t Cp, T* maxima, int64_t maxima_row) {
  typename Simd<T>::V best, tap;
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t i = 0; i < W * Cp; i += Simd<T>::L) {
      first_maximum<T>(in + h * row + i, row, Cp, best, tap);
      Simd<T>::store(maxima + h * maxima_row + i, tap);
    }
}

// Gradient of the input of a max pool at stride 1, `rows` rows of W pixels. `gradient` (of the output) and `maxima`
// have a border of one pixel and begin one row higher.
template <class T>
void pool_gather(const T* gradient, const T* maxima, int64_t row, int64_t rows, int64_t W, int64_t Cp, T* out) {
  typedef typename Simd<T>::V V;
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t i = 0; i < W * Cp; i += Simd<T>::L) {
      V sum = {};
      unrolled<9>([&](auto j) ALWAYS {  // window j of the nine sees this pixel at its place 8 - j
        const int64_t at = (h + j / 3) * row + j % 3 * Cp + i;
        const V g = Simd<T>::load(gradient + at), zero = {};
        sum += Simd<T>::load(maxima + at) == zero + static_cast<T>(8 - j) ? g : zero;
      });
      Simd<T>::store(out + h * W * Cp + i, sum);
    }
}

// Gradient of a pool's input at any stride: scatters `rows` output rows onto the bordered plane `to`. An average's
// gradient is already divided by the size of its window. `in` and `to` begin with the first row of the first window.
template <class T>
void pool_scatter(const T* in, int64_t row, int64_t stride, int64_t kind, int64_t rows, int64_t Wo, int64_t Cp,
                  const T* gradient, T* to) {
  typedef typename Simd<T>::V V;
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t w = 0; w < Wo; ++w)
      for (int64_t b = 0; b < Cp; b += Simd<T>::L) {
        const int64_t corner = h * stride * row + w * stride * Cp + b;
        const V g = Simd<T>::load(gradient + (h * Wo + w) * Cp + b), zero = {};
        V best, tap = {};
        if (kind == MAX) first_maximum<T>(in + corner, row, Cp, best, tap);
        for (int i = 0; i < 9; ++i) {
          T* p = to + corner + i / 3 * row + i % 3 * Cp;
          const V here = zero + static_cast<T>(i);
          Simd<T>::store(p, Simd<T>::load(p) + (kind == MAX ? (tap == here ? g : zero) : g));
        }
      }
}

}  // namespace
