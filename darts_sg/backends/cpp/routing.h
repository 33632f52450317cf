// Partial channels: the channels that by-pass the operations of a cell (PC-DARTS, section 3.2), and their gradients.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "arguments.h"
#include "memory.h"
#include "threads.h"
#include "vectors.h"

namespace {

// Calls f with K, the number of channel groups, as a compile-time constant where it is a usual one, otherwise with 0.
template <class F>
void with_shuffle(int64_t K, F f) {
  if (K == 2 || K == 4 || K == 8) return as_constant<2, 4, 8>(K, f);
  f(std::integral_constant<int64_t, 0>());
}

// Computes one RouteArgs: see there for the three kinds. A thread works on one image at a time.
template <class T>
struct Router {
  typedef Simd<T> Sd;
  typedef typename Sd::V V;
  const RouteArgs& r;
  const int64_t Cm;  // channels that go through the operations
  explicit Router(const RouteArgs& route) : r(route), Cm(r.C / r.K) {}

  // The channels of image n in a tensor of packed images, those of its neighbours being between its pixels.
  template <class P>
  P* packed_image(P* tensor, int64_t n) const {
    return tensor + n / r.packed * r.H * r.W * packed_pixel() + n % r.packed * Cm;
  }
  int64_t packed_pixel() const { return r.packed * Cm; }

  // to[channel i * K + g] = from[channel g * C / K + i] for W pixels, or with `back` the inverse.
  void shuffle(const T* from, T* to, bool back) const {
    const int64_t C = r.C, W = r.W;
    with_shuffle(r.K, [&](auto constant) {
      const int64_t K = constant ? static_cast<int64_t>(constant) : r.K, of_group = C / K;
      for (int64_t w = 0; w < W; ++w, from += C, to += C)
        for (int64_t i = 0; i < of_group; ++i)
          for (int64_t g = 0; g < K; ++g) {
            if (back)
              to[g * of_group + i] = from[i * K + g];
            else
              to[i * K + g] = from[g * of_group + i];
          }
    });
  }

  // Calls f(target of a pixel's first Cm channels in the packed tensor, in the plain one) for W pixels.
  template <class A, class B>
  void copy_mixed(const A* from, int64_t from_pixel, B* to, int64_t to_pixel) const {
    const auto copy = [&](auto count) {
      for (int64_t w = 0; w < r.W; ++w)
        for (int64_t c = 0; c < count; ++c) to[w * to_pixel + c] = from[w * from_pixel + c];
    };
    if (Cm == 4 || Cm == 8 || Cm == 16) return as_constant<4, 8, 16>(Cm, copy);
    copy(Cm);
  }

  void forward() const {
    parallel_for(r.N, r.threads, [&](int64_t n) {
      if (r.kind == TAKE) take(n);
      if (r.kind == HALVE) halve(n);
      if (r.kind == SHUFFLE) shuffle_node(n);
    });
  }

  // all: the gradients of the states; sums: those of gamma.
  void backward(bool all, bool sums) const {
    const int64_t channels = (r.num_states - 1) * r.C;
    Buffer<double> parts(r.kind == SHUFFLE && sums ? r.N * channels : 0);
    parallel_for(r.N, r.threads, [&](int64_t n) {
      if (r.kind == TAKE && all) take_backward(n);
      if (r.kind == HALVE && all) halve_backward(n);
      if (r.kind == SHUFFLE) shuffle_backward(n, all, sums ? parts.get() + n * channels : nullptr);
    });
    if (parts.get()) sum_images(parts.get(), r.N, channels, r.sum_y);
  }

  const T* state(int64_t i, int64_t n, int64_t h) const {
    return static_cast<const T*>(r.states[i]) + (n * r.H + h) * r.W * r.C;
  }

  void take(int64_t n) const {
    T* out = packed_image(static_cast<T*>(r.node), n);
    for (int64_t h = 0; h < r.H; ++h) copy_mixed(state(0, n, h), r.C, out + h * r.W * packed_pixel(), packed_pixel());
  }

  void take_backward(int64_t n) const {
    const T* g = packed_image(static_cast<const T*>(r.node), n);
    T* to = static_cast<T*>(r.to_states[0]) + n * r.H * r.W * r.C;
    for (int64_t p = 0; p < r.H * r.W; ++p)
      for (int64_t c = 0; c < Cm; ++c) to[p * r.C + c] += g[p * packed_pixel() + c];
  }

  // Calls f(offset of the pixel in the image, whether it is the window's first) for the window of output pixel (h, w).
  template <class F>
  ALWAYS_INLINE void for_window(int64_t h, int64_t w, F f) const {
    for (int64_t y = 2 * h; y < std::min(2 * h + 2, r.H); ++y)
      for (int64_t x = 2 * w; x < std::min(2 * w + 2, r.W); ++x) f((y * r.W + x) * r.C, y == 2 * h && x == 2 * w);
  }

  void halve(int64_t n) const {
    const T* in = state(0, n, 0);
    T* out = static_cast<T*>(r.node) + n * r.Ho * r.Wo * r.C;
    for (int64_t h = 0; h < r.Ho; ++h)
      for (int64_t w = 0; w < r.Wo; ++w, out += r.C)
        for_groups<T>(r.C, [&](auto group) {
          unrolled<group.size>([&](auto i) ALWAYS {
            V best = {};
            for_window(h, w, [&](int64_t at, bool first) ALWAYS {
              const V v = group.load(in + at, i);
              best = first ? v : (v > best) | (v != v) ? v : best;  // NaN beats all numbers
            });
            group.store(out, best, i);
          });
        });
  }

  // The first of equal maxima gets the gradient, as in PyTorch. Windows do not overlap, so each pixel is written once.
  void halve_backward(int64_t n) const {
    const int64_t image = n * r.H * r.W * r.C;
    const T *in = state(0, n, 0), *g = static_cast<const T*>(r.node) + n * r.Ho * r.Wo * r.C;
    const T* onto = static_cast<const T*>(r.onto_states[0]);
    T* to = static_cast<T*>(r.to_states[0]) + image;
    if (onto) onto += image;
    for (int64_t h = 0; h < r.Ho; ++h)
      for (int64_t w = 0; w < r.Wo; ++w, g += r.C)
        for_groups<T>(r.C, [&](auto group) {
          constexpr int B = group.size;
          V best[B] = {}, tap[B] = {}, given[B];
          const V zero = {};
          T number = 0;
          unrolled<B>([&](auto i) ALWAYS { given[i] = group.load(g, i); });
          for_window(h, w, [&](int64_t at, bool first) ALWAYS {
            unrolled<B>([&](auto i) ALWAYS {
              const V v = group.load(in + at, i), here = zero + number;
              const auto larger = (v > best[i]) | (v != v);
              tap[i] = first ? here : larger ? here : tap[i];
              best[i] = first ? v : larger ? v : best[i];
            });
            number += 1;
          });
          number = 0;
          for_window(h, w, [&](int64_t at, bool) ALWAYS {
            V v[B];
            unrolled<B>([&](auto i) ALWAYS {
              v[i] = tap[i] == zero + number ? given[i] : zero;
              if (onto) v[i] += group.load(onto + at, i);
            });
            unrolled<B>([&](auto i) ALWAYS { group.store(to + at, v[i], i); });
            number += 1;
          });
        });
  }

  void shuffle_node(int64_t n) const {
    const T* gamma = static_cast<const T*>(r.gamma);
    const T* mixed = packed_image(static_cast<const T*>(r.states[0]), n);
    T* row = Scratch<T>::of_thread().take(r.W * r.C + Sd::L);
    for (int64_t h = 0; h < r.H; ++h) {
      for_groups<T>(r.C, [&](auto group) {
        constexpr int B = group.size;
        for (int64_t w = 0; w < r.W; ++w) {
          V v[B] = {};
          for (int64_t i = 1; i < r.num_states; ++i) {
            const T* from = state(i, n, h) + w * r.C;
            unrolled<B>([&](auto b) ALWAYS { v[b] += gamma[i - 1] * group.load(from, b); });
          }
          unrolled<B>([&](auto b) ALWAYS { group.store(row + w * r.C, v[b], b); });
        }
      });
      copy_mixed(mixed + h * r.W * packed_pixel(), packed_pixel(), row, r.C);
      shuffle(row, static_cast<T*>(r.node) + (n * r.H + h) * r.W * r.C, false);
    }
  }

  // sums: (num_states - 1, C), or null.
  void shuffle_backward(int64_t n, bool all, double* sums) const {
    const T* gamma = static_cast<const T*>(r.gamma);
    Scratch<T>& scratch = Scratch<T>::of_thread();
    T* row = scratch.take(r.W * r.C + Sd::L);
    for (int64_t h = 0; h < r.H; ++h) {
      const int64_t at = (n * r.H + h) * r.W * r.C;
      shuffle(static_cast<const T*>(r.node) + at, row, true);
      if (all) {
        T* mixed = packed_image(static_cast<T*>(r.to_states[0]), n);
        copy_mixed(row, r.C, mixed + h * r.W * packed_pixel(), packed_pixel());
      }
      for (int64_t w = 0; w < r.W; ++w)
        for (int64_t c = 0; c < Cm; ++c) row[w * r.C + c] = 0;
      for (int64_t i = 1; i < r.num_states; ++i)
        for_groups<T>(r.C, [&](auto group) {
          constexpr int B = group.size;
          if (all) {
            T* to = static_cast<T*>(r.to_states[i]) + at;
            const T* onto = static_cast<const T*>(r.onto_states[i]);
            for (int64_t w = 0; w < r.W; ++w) {
              V v[B];
              unrolled<B>([&](auto b) ALWAYS {
                v[b] = gamma[i - 1] * group.load(row + w * r.C, b);
                if (onto) v[b] += group.load(onto + at + w * r.C, b);
              });
              unrolled<B>([&](auto b) ALWAYS { group.store(to + w * r.C, v[b], b); });
            }
          }
          if (sums) {
            V sum[B];
            const T* from = state(i, n, h);
            sum_over<T>(r.W, sum, [&](int64_t w, auto b) ALWAYS {
              return group.load(from + w * r.C, b) * group.load(row + w * r.C, b);
            });
            const int64_t lanes = std::min(r.C, Sd::L);
            for (int b = 0; b < B; ++b)
              for (int64_t c = 0; c < lanes; ++c) add_once(sums + (i - 1) * r.C, group, b, c, sum[b][c]);
          }
        });
    }
  }

  // Adds to a channel's sum. The last vector of a group may overlap the one before: its channels count once.
  template <class G>
  static void add_once(double* sums, G group, int b, int64_t c, double value) {
    const int64_t channel = group.at(b) + c;
    if (b > 0 && channel < group.at(b - 1) + Sd::L) return;
    sums[channel] += value;
  }
};

}  // namespace
