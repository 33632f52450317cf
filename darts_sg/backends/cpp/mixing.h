// Weighted sums of operations in the nodes, and their gradients.

#pragma once

#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "memory.h"
#include "threads.h"
#include "vectors.h"

namespace {

// out = the sum over T_ nodes of gamma * node, plus `onto` unless that is null. All are (pixels, C); nodes begin at
// offset `at`, and their gammas are `gamma_step` values apart.
template <class T>
void mix_nodes(const void* const* nodes, int64_t at, const T* gamma, int64_t gamma_step, int64_t T_, int64_t pixels,
               int64_t C, T* out, const T* onto) {
  for_groups<T>(C, [&](auto group) {
    constexpr int B = group.size;
    for (int64_t t = 0; t < T_; ++t) {
      const T* node = static_cast<const T*>(nodes[t]) + at;
      const T factor = gamma[t * gamma_step];
      const T* further = t > 0 ? out : onto;
      for (int64_t p = 0; p < pixels; ++p) {
        typename Simd<T>::V v[B];
        unrolled<B>([&](auto i) ALWAYS {
          v[i] = factor * group.load(node + p * C, i);
          if (further) v[i] += group.load(further + p * C, i);
        });
        unrolled<B>([&](auto i) ALWAYS { group.store(out + p * C, v[i], i); });
      }
    }
  });
}

// Computes one MixArgs: see there for the formula.
template <class T>
struct Mixer {
  static constexpr int64_t PREFETCH_VECTORS = 48;  // how many vectors ahead loads are prefetched
  typedef Simd<T> Sd;
  typedef typename Sd::V V;
  const MixArgs& m;
  const int64_t E;
  explicit Mixer(const MixArgs& mix) : m(mix), E(mix.S * mix.T) {}

  // Output of operation o on edge e for image n, before its last BatchNorm.
  const T* y(int64_t o, int64_t n, int64_t e) const {
    const T* of_state = static_cast<const T*>(m.y[o * m.S + e / m.T]);
    return of_state + n * m.image[o] + (m.shared[o] ? 0 : e % m.T * m.part[o]);
  }
  const T* gamma(int64_t o, int64_t n, int64_t e) const {
    return static_cast<const T*>(m.gamma) + (o * E + e) * m.gamma_edge + n * m.gamma_image;
  }
  // A vector of scale or shift; `other` where the operation has none.
  template <class G>
  V coefficient(const void* const* all, int64_t o, int64_t e, G group, int i, T other) const {
    const T* from = static_cast<const T*>(all[o]);
    return from ? group.load(from + (m.shared[o] ? e / m.T : e) * m.C, i) : V{} + other;
  }

  // Adds operations [from_op, to_op) to the nodes; from_op 0 starts from `onto`.
  void forward(int64_t from_op, int64_t to_op) const {
    // few images are divided into bands of pixels, so that each thread has one
    const int64_t units = m.N * m.T;
    const int64_t bands = units ? std::clamp<int64_t>((m.threads + units - 1) / units, 1, m.pixels) : 1;
    parallel_for(units * bands, m.threads, [&](int64_t part) {
      const int64_t unit = part / bands, band = part % bands, n = unit / m.T, t = unit % m.T;
      const int64_t begin = band * m.pixels / bands, end = (band + 1) * m.pixels / bands;
      T* out = static_cast<T*>(m.nodes[t]) + n * m.pixels * m.C;
      for_groups<T>(m.C, [&](auto group) {
        constexpr int B = group.size;
        // All shifts add up to one constant, so that the loops over pixels only multiply and add.
        V constant[B] = {};
        for (int64_t o = from_op; o < to_op; ++o)
          for (int64_t e = t; e < E; e += m.T)
            unrolled<B>([&](auto i)
                            ALWAYS { constant[i] += *gamma(o, n, e) * coefficient(m.shift, o, e, group, i, 0); });
        // Four terms per pass over the pixels, so that the node is loaded and stored rarely.
        const T* from[4] = {};
        V factor[4][B];
        int64_t step[4], terms = 0;
        const T* before = from_op ? static_cast<const T*>(m.nodes[t]) : static_cast<const T*>(m.onto[t]);
        if (before) before += n * m.pixels * m.C;
        const auto add = [&](auto count_of) {
          constexpr int K = count_of;
          for (int64_t p = begin; p < end; ++p) {
            V v[B];
            unrolled<B>([&](auto i)
                            ALWAYS { v[i] = before ? constant[i] + group.load(before + p * m.C, i) : constant[i]; });
            unrolled<K>([&](auto k) ALWAYS {
              unrolled<B>([&](auto i) ALWAYS {
                __builtin_prefetch(from[k] + (p + PREFETCH_VECTORS / B) * step[k] + group.at(i));
                v[i] += factor[k][i] * group.load(from[k] + p * step[k], i);
              });
            });
            unrolled<B>([&](auto i) ALWAYS { group.store(out + p * m.C, v[i], i); });
          }
          before = out;
          unrolled<B>([&](auto i) ALWAYS { constant[i] = V{}; });
          terms = 0;
        };
        for (int64_t o = from_op; o < to_op; ++o)
          for (int64_t e = t; e < E; e += m.T) {
            for (int i = 0; i < B; ++i) factor[terms][i] = *gamma(o, n, e) * coefficient(m.scale, o, e, group, i, 1);
            from[terms] = y(o, n, e);
            step[terms++] = m.pixel[o];
            as_constant<4>(terms, add);
          }
        as_constant<3, 2, 1>(terms, add);
      });
    });
  }

  // Sums over pixels and images of the nodes' gradient and of gradient * operation o, which gamma's gradient and the
  // operation's last BatchNorm need. Each image is summed apart, so that threads do not change the result.
  void backward(int64_t o) const {
    const int64_t channels = E * m.C;
    Buffer<double> sums(m.N * channels), sums_y(m.N * channels);
    parallel_for(m.N * m.T, m.threads, [&](int64_t unit) {
      const int64_t n = unit / m.T, t = unit % m.T;
      const T* g = static_cast<const T*>(m.nodes[t]) + n * m.pixels * m.C;
      for_groups<T>(m.C, [&](auto group) {
        constexpr int B = group.size;
        const auto gradient = [&](int64_t p, int i) ALWAYS { return group.load(g + p * m.C, i); };
        V sum[B], sum_y[B], scale[B], shift[B];
        sum_over<T>(m.pixels, sum, gradient);
        for (int64_t e = t; e < E; e += m.T) {
          unrolled<B>([&](auto i) ALWAYS {
            scale[i] = coefficient(m.scale, o, e, group, i, 1);
            shift[i] = coefficient(m.shift, o, e, group, i, 0);
          });
          const T* from = y(o, n, e);
          const int64_t pixel = m.pixel[o];
          sum_over<T>(m.pixels, sum_y, [&](int64_t p, auto i) ALWAYS {
            __builtin_prefetch(from + (p + PREFETCH_VECTORS / B) * pixel + group.at(i));
            return gradient(p, i) * (group.load(from + p * pixel, i) * scale[i] + shift[i]);
          });
          const double factor = m.gamma_image ? *gamma(o, n, e) : T(1);
          const int64_t lanes = std::min(m.C, Sd::L), first = n * channels + e * m.C;
          for (int i = 0; i < B; ++i)
            for (int64_t c = 0; c < lanes; ++c) {
              sums.get()[first + group.at(i) + c] = factor * sum[i][c];
              sums_y.get()[first + group.at(i) + c] = factor * sum_y[i][c];
            }
        }
      });
    });
    sum_images(sums.get(), m.N, channels, m.sum[o]);
    sum_images(sums_y.get(), m.N, channels, m.sum_y[o]);
  }

  // Gradient of the states that operation o, an identity, passes on.
  void identity_backward(int64_t o) const {
    parallel_for(m.N * m.S, m.threads, [&](int64_t unit) {
      const int64_t n = unit / m.S, s = unit % m.S;
      const int64_t image = n * m.pixels * m.C;
      const T* onto = static_cast<const T*>(m.onto_states[o * m.S + s]);
      mix_nodes<T>(m.nodes, image, gamma(o, n, s * m.T), m.gamma_edge, m.T, m.pixels, m.C,
                   static_cast<T*>(m.to_states[o * m.S + s]) + image, onto ? onto + image : nullptr);
    });
  }
};

}  // namespace
