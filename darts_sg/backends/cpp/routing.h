// Partial channels: the channels that by-pass the operations of a cell (PC-DARTS, section 3.2), and their gradients.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arguments.h"
#include "memory.h"
#include "threads.h"
#include "vectors.h"

namespace {

// Four vectors of four values, whose rows and columns `swap` swaps.
template <class T>
struct Transpose {
  typedef T V __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  V a[4];
  ALWAYS_INLINE void swap() {
    const V low = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5);
    const V high = __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7);
    const V lower = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5);
    const V higher = __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
    a[0] = __builtin_shufflevector(low, lower, 0, 1, 4, 5);
    a[1] = __builtin_shufflevector(low, lower, 2, 3, 6, 7);
    a[2] = __builtin_shufflevector(high, higher, 0, 1, 4, 5);
    a[3] = __builtin_shufflevector(high, higher, 2, 3, 6, 7);
  }
};

// Computes one RouteArgs: see there for the three kinds. A thread works on one image at a time.
template <class T>
struct Router {
  typedef Simd<T> Sd;
  typedef typename Sd::V V;
  typedef typename Transpose<T>::V Four;
  const RouteArgs& r;
  const int64_t Cm;  // channels that go through the operations
  explicit Router(const RouteArgs& route) : r(route), Cm(r.C / r.K) {}

  // The channels of image n in a tensor of packed images, those of its neighbours being between its pixels.
  template <class P>
  P* packed_image(P* tensor, int64_t n) const {
    return tensor + n / r.packed * r.H * r.W * packed_pixel() + n % r.packed * Cm;
  }
  int64_t packed_pixel() const { return r.packed * Cm; }

  static Four four(const T* p) { return *reinterpret_cast<const Four*>(p); }
  static void set_four(T* p, Four v) { *reinterpret_cast<Four*>(p) = v; }

  // W pixels of a node: channel i * K + g from channel g * C / K + i, which `mixed` has for g = 0, `others` otherwise.
  void shuffle(const T* mixed, const T* others, T* node) const {
    for (int64_t w = 0; w < r.W; ++w, mixed += packed_pixel(), others += r.C, node += r.C)
      if (r.K == 4 && Cm % 4 == 0)
        for (int64_t i = 0; i < Cm; i += 4) {
          const T* from = others + i;
          Transpose<T> t{{four(mixed + i), four(from + Cm), four(from + 2 * Cm), four(from + 3 * Cm)}};
          t.swap();
          unrolled<4>([&](auto j) ALWAYS { set_four(node + 4 * (i + j), t.a[j]); });
        }
      else
        for (int64_t i = 0; i < Cm; ++i)
          for (int64_t g = 0; g < r.K; ++g) node[i * r.K + g] = g ? others[g * Cm + i] : mixed[i];
  }

  // The inverse for a node's gradient; `mixed` may be null, and those channels of `others` are set to zero.
  void unshuffle(const T* node, T* mixed, T* others) const {
    const int64_t step = mixed ? packed_pixel() : 0;
    for (int64_t w = 0; w < r.W; ++w, mixed += step, others += r.C, node += r.C)
      if (r.K == 4 && Cm % 4 == 0)
        for (int64_t i = 0; i < Cm; i += 4) {
          const T* from = node + 4 * i;
          Transpose<T> t{{four(from), four(from + 4), four(from + 8), four(from + 12)}};
          t.swap();
          if (mixed) set_four(mixed + i, t.a[0]);
          set_four(others + i, Four{});
          unrolled<3>([&](auto g) ALWAYS { set_four(others + (g + 1) * Cm + i, t.a[g + 1]); });
        }
      else
        for (int64_t i = 0; i < Cm; ++i)
          for (int64_t g = 0; g < r.K; ++g) {
            others[g * Cm + i] = g ? node[i * r.K + g] : T(0);
            if (mixed && g == 0) mixed[i] = node[i * r.K];
          }
  }

  static constexpr int64_t MAX_TERMS = 5;         // of a sum: the states before the last node of a cell
  static constexpr int64_t PREFETCH_VECTORS = 16;  // how many vectors ahead loads are prefetched

  // out = before + the sum of factor * term, for one row of all channels. `before` may be null.
  void add_terms(const T* const* terms, const T* factors, int64_t count, const T* before, T* out) const {
    as_constant<1, 2, 3, 4, 5>(count, [&](auto constant) {
      constexpr int K = constant;
      for_groups<T>(r.C, [&](auto group) {
        constexpr int B = group.size;
        const int64_t values = r.W * r.C, C = r.C;
        const T* from[K];
        T factor[K];
        unrolled<K>([&](auto k) ALWAYS { from[k] = terms[k], factor[k] = factors[k]; });
        const T* onto = before;
        T* to = out;
        for (int64_t at = 0; at < values; at += C) {
          V v[B];
          unrolled<K>([&](auto k) ALWAYS {
            unrolled<B>([&](auto b) ALWAYS {
              __builtin_prefetch(from[k] + at + PREFETCH_VECTORS / B * C + group.at(b));
              const V term = group.load(from[k] + at, b);
              if (k == 0)
                v[b] = onto ? factor[k] * term + group.load(onto + at, b) : factor[k] * term;
              else
                v[b] = factor[k] * term + v[b];
            });
          });
          unrolled<B>([&](auto b) ALWAYS { group.store(to + at, v[b], b); });
        }
      });
    });
  }

  void forward() const {
    parallel_for(r.N, r.threads, [&](int64_t n) {
      if (r.kind == TAKE) take(n, state(0, n, 0), static_cast<T*>(r.node), 0, r.H);
      if (r.kind == HALVE) halve(n);
      if (r.kind == SHUFFLE) shuffle_node(n);
    });
  }

  // all: the gradients of the states; sums: those of gamma.
  void backward(bool all, bool sums) const {
    const int64_t channels = r.num_sinks * (1 + r.num_later) * r.C;
    Buffer<double> parts(r.kind == SHUFFLE && sums ? r.N * channels : 0);
    parallel_for(r.N, r.threads, [&](int64_t n) {
      if (r.kind == TAKE && all)
        take_backward(n, static_cast<const T*>(r.node), static_cast<T*>(r.to_states[0]), 0, r.H);
      if (r.kind == HALVE && all) halve_backward(n);
      if (r.kind == SHUFFLE) shuffle_backward(n, all, sums ? parts.get() + n * channels : nullptr);
    });
    if (!parts.get()) return;
    std::vector<double> totals(channels);
    sum_images(parts.get(), r.N, channels, totals.data());
    for (int64_t i = 0; i < channels / r.C; ++i)
      if (r.sink_sums[i]) std::copy_n(totals.data() + i * r.C, r.C, r.sink_sums[i]);
  }

  const T* state(int64_t i, int64_t n, int64_t h) const {
    return static_cast<const T*>(r.states[i]) + (n * r.H + h) * r.W * r.C;
  }

  // Rows [begin, end) of image n: `from` is the first of them, `taken` the whole tensor.
  void take(int64_t n, const T* from, T* taken, int64_t begin, int64_t end) const {
    T* to = packed_image(taken, n) + begin * r.W * packed_pixel();
    for (int64_t p = begin * r.W; p < end * r.W; ++p, from += r.C, to += packed_pixel())
      if (Cm % 4 == 0)
        for (int64_t c = 0; c < Cm; c += 4) set_four(to + c, four(from + c));
      else
        for (int64_t c = 0; c < Cm; ++c) to[c] = from[c];
  }

  // Adds rows [begin, end) of the gradient `taken` to that of the state.
  void take_backward(int64_t n, const T* taken, T* state, int64_t begin, int64_t end) const {
    const T* from = packed_image(taken, n) + begin * r.W * packed_pixel();
    T* to = state + (n * r.H + begin) * r.W * r.C;
    for (int64_t p = begin * r.W; p < end * r.W; ++p, from += packed_pixel(), to += r.C)
      if (Cm % 4 == 0)
        for (int64_t c = 0; c < Cm; c += 4) set_four(to + c, four(to + c) + four(from + c));
      else
        for (int64_t c = 0; c < Cm; ++c) to[c] += from[c];
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
      for (int64_t i = 1; i < r.num_states; i += MAX_TERMS) {
        const int64_t count = std::min(MAX_TERMS, r.num_states - i);
        const T* terms[MAX_TERMS];
        for (int64_t j = 0; j < count; ++j) terms[j] = state(i + j, n, h);
        add_terms(terms, gamma + i - 1, count, i > 1 ? row : nullptr, row);
      }
      T* node = static_cast<T*>(r.node) + (n * r.H + h) * r.W * r.C;
      shuffle(mixed + h * r.W * packed_pixel(), row, node);
      if (r.taken) take(n, node, static_cast<T*>(r.taken), h, h + 1);
    }
  }

  // A row of each node's gradient, unshuffled: of this node, then of later ones.
  struct Rows {
    T* first;
    int64_t size;
    T* at(int64_t i) const { return first + i * size; }
  };

  // Row h of the gradient of sink i of image n: what it is added to, plus factor * row for all nodes that read it, the
  // latest first.
  void sum_sink(int64_t i, int64_t n, int64_t h, Rows rows) const {
    const int64_t at = (n * r.H + h) * r.W * r.C, nodes = 1 + r.num_later;
    const T* terms[MAX_TERMS];
    T factors[MAX_TERMS];
    int64_t count = 0;
    const T* before = static_cast<const T*>(r.onto_sinks[i]);
    if (before) before += at;
    T* to = static_cast<T*>(r.to_sinks[i]) + at;
    const auto flush = [&] {
      if (count == 0) return;
      add_terms(terms, factors, count, before, to);
      before = to;
      count = 0;
    };
    for (int64_t node = nodes - 1; node >= 0; --node) {
      const T* factor = static_cast<const T*>(r.factors[i * nodes + node]);
      if (!factor || (node > 0 && !r.later[node - 1])) continue;
      terms[count] = rows.at(node);
      factors[count++] = *factor;
      if (count == MAX_TERMS) flush();
    }
    flush();
    if (!before) std::fill_n(to, r.W * r.C, T(0));
    if (before && before != to) std::copy_n(before, r.W * r.C, to);
  }

  // sums: (num_sinks, 1 + num_later, C), or null.
  void shuffle_backward(int64_t n, bool all, double* sums) const {
    const int64_t pitch = padded<T>(r.C), nodes = 1 + r.num_later, image = n * r.H * r.W * r.C;
    Scratch<T>& scratch = Scratch<T>::of_thread();
    const Rows rows{scratch.take(nodes * (r.W * r.C + Sd::L)), r.W * r.C + Sd::L};
    T* of_image = scratch.zeros(sums ? r.num_sinks * nodes * pitch : 0);
    T* mixed = all ? packed_image(static_cast<T*>(r.to_states[0]), n) : nullptr;
    for (int64_t h = 0; h < r.H; ++h, mixed += all ? r.W * packed_pixel() : 0) {
      const int64_t at = image + h * r.W * r.C;
      for (int64_t i = 0; i < r.num_later; ++i)
        if (r.later[i]) unshuffle(static_cast<const T*>(r.later[i]) + at, nullptr, rows.at(1 + i));
      if (r.adds_to_node) sum_sink(0, n, h, rows);
      if (r.taken) take_backward(n, static_cast<const T*>(r.taken), static_cast<T*>(r.node), h, h + 1);
      unshuffle(static_cast<const T*>(r.node) + at, mixed, rows.at(0));
      for (int64_t i = r.adds_to_node; all && i < r.num_sinks; ++i) sum_sink(i, n, h, rows);
      for (int64_t i = 0; sums && i < r.num_sinks * nodes; ++i) {
        const int64_t node = i % nodes;
        if (!r.sink_sums[i] || (node > 0 && !r.later[node - 1])) continue;
        const T *from = static_cast<const T*>(r.sink_states[i / nodes]) + at, *row = rows.at(node);
        for_groups<T>(r.C, [&](auto group) {
          constexpr int B = group.size;
          V sum[B];
          const int64_t C = r.C;
          sum_over<T>(r.W, sum, [&](int64_t w, auto b)
                                    ALWAYS { return group.load(from + w * C, b) * group.load(row + w * C, b); });
          T* total = of_image + i * pitch;
          unrolled<B>([&](auto b) ALWAYS { sum[b] += group.load(total, b); });
          unrolled<B>([&](auto b) ALWAYS { group.store(total, sum[b], b); });
        });
      }
    }
    for (int64_t i = 0; sums && i < r.num_sinks * nodes; ++i)
      for (int64_t c = 0; c < r.C; ++c) sums[i * r.C + c] = of_image[i * pitch + c];
  }
};

}  // namespace
