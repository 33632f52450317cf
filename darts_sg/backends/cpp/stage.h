// One stage: activation, depthwise convolution or pool, 1x1 convolution and BatchNorm on all edges.
//
// StageKernel holds the packed weights and the steps that both passes use; stage_forward.h and stage_backward.h hold
// the passes themselves. A thread works on one edge of one image in blocks of R output rows, which stay in the L1
// cache.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "arguments.h"
#include "depthwise.h"
#include "memory.h"
#include "mixing.h"
#include "pointwise.h"
#include "pools.h"
#include "vectors.h"

namespace {

constexpr int64_t CHUNKS = 8;  // of the batch: each sums its weight gradients apart, whatever the number of threads
constexpr int64_t ROW_BLOCK_BYTES = 16384;  // of the output rows that are computed at a time
constexpr int64_t WINDOW_BYTES = 262144;    // of the rows of a plane that are kept at a time

// Calls f with the activation as a compile-time constant.
template <class F>
void with_activation(int64_t activation, F f) {
  as_constant<NONE, RELU, RELU6>(activation, f);
}

// A stage with its weights packed: read by all threads.
// Suffix p: padded to whole vectors. A plane of the input is (Hp, Wp, Cip), with a border of `pad` pixels.
template <class T>
struct StageKernel {
  typedef Simd<T> Sd;
  typedef typename Sd::V V;
  const StageArgs& s;
  const int64_t E, Cip, Cop, kk, pad, Hp, Wp, pixels;
  const int64_t Cm, Cmp;  // input channels of the 1x1 convolution, and the same padded
  const int64_t R;        // output rows per block
  const int64_t P, ci, co;  // images side by side, and the channels of one of them
  const int64_t B;          // size of the blocks of the 1x1 convolution if their kernel computes it, otherwise 0
  // Packed for each edge: taps (kk, Cip), the same flipped for the backward pass, matrix (Cm, Cop), its transpose
  // (Co, Cmp), both in panels, or in blocks (B, L), and the BatchNorm before, (Cip).
  Buffer<T> taps, flipped, matrix, transposed, in_scale, in_shift;

  explicit StageKernel(const StageArgs& stage, bool backward)
      : s(stage),
        E(s.S * s.T),
        Cip(padded<T>(s.Ci)),
        Cop(padded<T>(s.Co)),
        kk(s.k * s.k),
        pad(s.k ? s.dilation * (s.k / 2) : 0),
        Hp(s.odd ? 2 * s.Ho : s.H + 2 * pad),
        Wp(s.odd ? 2 * s.Wo : s.W + 2 * pad),
        pixels(s.Ho * s.Wo),
        Cm(s.odd ? 2 * Cip : s.Ci),
        Cmp(s.odd ? 2 * Cip : Cip),
        R(std::clamp<int64_t>(ROW_BLOCK_BYTES / (s.Wo * std::max(Cip, Cop) * sizeof(T)), 1, s.Ho)),
        P(s.packed),
        ci(s.Ci / P),
        co(s.Co / P),
        B(has_blocks() ? ci : 0),
        taps(s.depthwise ? E * kk * Cip : 0),
        flipped(backward && s.k && s.pool != MAX ? E * kk * Cip : 0),
        matrix(s.pointwise ? E * (B ? B : Cm) * Cop : 0),
        transposed(backward && s.pointwise ? E * matrix_rows() * Cmp : 0),
        in_scale(E * Cip),
        in_shift(E * Cip) {
    // the gradient of an average pool is a convolution with ones
    if (s.pool == AVERAGE && backward) std::fill(flipped.get(), flipped.get() + E * kk * Cip, T(1));
    const T* w = static_cast<const T*>(s.depthwise);
    for (int64_t e = 0; e < E; ++e)
      for (int64_t c = 0; c < s.Ci; ++c) {
        for (int64_t i = 0; w && i < kk; ++i) {
          const T value = w[(e * ci + c % ci) * kk + i];
          taps.get()[(e * kk + i) * Cip + c] = value;
          if (backward) flipped.get()[(e * kk + kk - 1 - i) * Cip + c] = value;
        }
        if (s.in_scale) {
          in_scale.get()[e * Cip + c] = static_cast<const T*>(s.in_scale)[e * s.Ci + c];
          in_shift.get()[e * Cip + c] = static_cast<const T*>(s.in_shift)[e * s.Ci + c];
        }
      }
    if (!s.pointwise) return;
    const Panels<T> columns(Cm, s.Co), rows(s.Co, Cm);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(s.threads))
    for (int64_t eo = 0; eo < E * s.Co; ++eo) {
      const int64_t e = eo / s.Co, o = eo % s.Co;
      // Images side by side: the matrix is block diagonal. Without a kernel for blocks it has zeros between them, so
      // NaN or infinity in an image reaches those beside it, which a BatchNorm in train mode does anyway.
      const T* m = weight_row<const T>(s.pointwise, s.odd, e, o % co);
      for (int64_t c = 0; B && c < ci; ++c) {
        matrix.get()[(e * B + c) * Cop + o] = m[c];
        if (backward) transposed.get()[(e * B + o % co) * Cop + o / co * ci + c] = m[c];
      }
      if (B) continue;
      const int64_t begin = o / co * ci + half(o);
      T* column = matrix.get() + e * Cm * Cop + columns.first[o];
      for (int64_t c = 0; c < ci; ++c) column[(begin + c) * columns.step[o]] = m[c];
      if (!backward) continue;
      T* row = transposed.get() + e * s.Co * Cmp;
      for (int64_t c = begin; c < begin + ci; ++c) row[rows.first[c] + o * rows.step[c]] = m[c - begin];
    }
  }

  bool has_blocks() const {
    bool found = false;
    with_block<T>(ci, [&](auto) { found = P > 1 && !s.odd && s.Ci == Sd::L && s.Co == Sd::L && Cop == Sd::L; });
    return found;
  }
  // Rows of the transposed matrix, and of its gradient.
  int64_t matrix_rows() const { return B ? B : s.Co; }
  // First input channel of output channel o in the plane of pairs: 0, or Cip for the half that sees odd pixels.
  int64_t half(int64_t o) const { return s.odd && o % co >= co / 2 ? Cip : 0; }
  // Weights of output channel o of an image, ci values, for edge e, in one of the two weight tensors.
  template <class W, class P>
  W* weight_row(P* even, P* odd, int64_t e, int64_t o) const {
    const int64_t first = odd ? co / 2 : co;
    if (o < first) return static_cast<W*>(even) + (e * first + o) * ci;
    return static_cast<W*>(odd) + (e * (co - first) + o - first) * ci;
  }

  // Input of edge e for image n; for a state in several parts, one of them.
  const T* input(int64_t n, int64_t e, int64_t part = 0) const {
    if (s.first) return static_cast<const T*>(s.states[e / s.T * s.parts + part]) + n * s.in_n;
    return static_cast<const T*>(s.in) + (n * E + e) * s.H * s.W * s.Ci;
  }
  int64_t in_pixel() const { return s.first ? s.in_pixel : s.Ci; }
  int64_t parts() const { return s.first ? s.parts : 1; }
  // Number of groups of vectors in a pixel of the input.
  int64_t load_groups() const { return parts() * num_groups<T>(s.Ci / parts()); }
  void prefetch_input(int64_t n, int64_t e, Prefetcher& prefetcher) const {
    if (s.first && e % s.T) return;  // another edge has brought it into the cache
    for (int64_t part = 0; part < parts(); ++part) prefetcher.add(input(n, e, part), s.H * s.W * in_pixel());
  }
  const T* gamma(int64_t n, int64_t e) const {
    return static_cast<const T*>(s.gamma) + e * s.gamma_edge + n * s.gamma_image;
  }

  // How many of a plane's `rows` rows of `row` values are kept at a time: all of them if they are few, or if several
  // edges read the same plane. A block of output rows needs `span` rows at most, and those that it shares with the next
  // block are moved, so twice as many are kept.
  int64_t window_rows(int64_t rows, int64_t row) const {
    if (s.pool || s.odd || (s.first && s.T > 1)) return rows;
    if (!s.k) return std::min(rows, R);  // blocks share no rows
    const int64_t span = (R + 1) * s.stride + 4 * pad + 1;
    return std::min(rows, std::max(2 * span, WINDOW_BYTES / (row * static_cast<int64_t>(sizeof(T)))));
  }

  // A thread's plane with its border: -infinity for a max pool, otherwise zero. bands: of the image, of which one is
  // computed at a time.
  Window<T> bordered(Scratch<T>& scratch, int64_t bands = 1) const {
    const int64_t row = Wp * Cip;
    int64_t rows = window_rows(Hp, row);
    if (bands > 1 && !s.pool && !s.odd) rows = std::min(rows, (s.Ho / bands + 1) * s.stride + 4 * pad + 1);
    T* plane = scratch.zeros(rows * row);
    if (s.pool == MAX) std::fill(plane, plane + rows * row, -std::numeric_limits<T>::infinity());
    return {plane, row, rows};
  }

  // Prepares a plane for output rows from `from` on, and returns the first input row that they need.
  int64_t begin(int64_t from, Window<T>& plane) const {
    plane.base = plane.capacity < Hp ? from * s.stride : 0;
    if (plane.capacity < Hp) plane.zero(plane.base, pad);
    return std::max<int64_t>(0, from * s.stride - pad);
  }

  // Loads the input rows that output rows [.., to) need into a plane that has the first `loaded`, and returns how many
  // it has then. keep: the first row of the plane, border included, that is still needed.
  int64_t load_for(int64_t to, int64_t n, int64_t e, int64_t loaded, int64_t keep, Window<T>& plane,
                   Prefetcher& prefetcher) const {
    const int64_t all = needed(to), border = all == s.H ? pad : 0;
    if (bare()) return all;
    if (plane.capacity < Hp) plane.advance(keep, loaded ? loaded + pad : pad, all + pad + border);
    load(n, e, loaded, all, plane.origin(), prefetcher);
    if (plane.capacity < Hp) plane.zero(all + pad, all + pad + border);
    return all;
  }

  // Number of input rows that the first `last` output rows need.
  int64_t needed(int64_t last) const {
    return last == s.Ho ? s.H : std::min(s.H, (last - 1) * s.stride + pad + (s.odd ? 2 : 1));
  }

  // Loads input rows [from, to) of edge e of image n into the plane, normalised and activated.
  void load(int64_t n, int64_t e, int64_t from, int64_t to, T* plane, Prefetcher& prefetcher) const {
    const int64_t step = in_pixel(), W = s.W, apart = Cip, parts = this->parts(), C = s.Ci / parts;
    const auto rows = [&](auto activation, auto scaled) {
      for (int64_t h = from; h < to; ++h)
        for (int64_t part = 0; part < parts; ++part)
          for_groups<T>(C, [&](auto group) {
            constexpr int B = group.size;
            V scale[B], shift[B];
            unrolled<B>([&](auto i) ALWAYS {
              scale[i] = Sd::load(in_scale.get() + e * Cip + group.at(i));
              shift[i] = Sd::load(in_shift.get() + e * Cip + group.at(i));
            });
            const T* source = input(n, e, part) + h * W * step;
            T* target = plane + ((h + pad) * Wp + pad) * Cip + part * C;
            prefetcher.step();
            for (int64_t w = 0; w < W; ++w)
              unrolled<B>([&](auto i) ALWAYS {
                V v = group.load(source + w * step, i);
                if (scaled) v = v * scale[i] + shift[i];
                v = activate<T>(v, activation);
                if (parts == 1)
                  Sd::store(target + w * apart + group.at(i), v);
                else  // whole vectors would overwrite the next part's channels
                  group.store(target + w * apart, v, i);
              });
          });
    };
    with_activation(s.activation, [&](auto activation) {
      if (s.in_scale)
        rows(activation, std::true_type());
      else
        rows(activation, std::false_type());
    });
  }

  // Calls f for each output pixel of rows [from, to) of a HalvingConv: its number, and the offsets of its even pixel
  // (0, 0) and its odd pixel (1, 1) in the plane.
  template <class F>
  void for_pairs(int64_t from, int64_t to, F f) const {
    for (int64_t h = from; h < to; ++h)
      for (int64_t w = 0; w < s.Wo; ++w)
        f((h - from) * s.Wo + w, (2 * h * Wp + 2 * w) * Cip, ((2 * h + 1) * Wp + 2 * w + 1) * Cip);
  }

  // Whether the stage is a BatchNorm alone, whose output before it is its input itself.
  bool bare() const { return !s.k && !s.pointwise; }
  // Whether something stands between the plane and the 1x1 convolution.
  bool has_middle() const { return s.k || s.odd; }

  // Computes output rows [from, to) of the depthwise convolution or pool, or gathers the pairs of pixels of a
  // HalvingConv: even pixel and odd pixel side by side, (pixels, 2 * Cip).
  void convolve(const T* plane, int64_t e, int64_t from, int64_t to, T* out) const {
    const int64_t row = Wp * Cip, bytes = Cip * sizeof(T);
    const T* in = plane + from * s.stride * row;
    if (s.odd)
      return for_pairs(from, to, [&](int64_t p, int64_t even, int64_t odd) {
        std::memcpy(out + p * Cmp, plane + even, bytes);
        std::memcpy(out + p * Cmp + Cip, plane + odd, bytes);
      });
    if (s.pool) return pool<T>(in, row, s.stride, s.pool, from, to, s.H, s.W, s.Wo, Cip, out);
    with_kernel_size(s.k, [&](auto k) {
      depthwise<T, k>(in, row, s.stride, s.dilation, taps.get() + e * kk * Cip, to - from, s.Wo, Cip, out);
    });
  }

  // Backward of this stage's BatchNorm: gradient * a + output * b + d for output rows [from, to) of edge e, to
  // `target`, Cop values per pixel and `row` pixels from row to row. `mixed` is scratch memory for the sum of the
  // nodes' gradients.
  void norm_backward(int64_t n, int64_t t, int64_t e, int64_t from, int64_t to, const T* a, const T* b, const T* d,
                     T* mixed, T* target, int64_t row, Prefetcher& prefetcher) const {
    const int64_t first = from * s.Wo * s.Co, image = pixels * s.Co;
    const T* y = static_cast<const T*>(s.out) + (n * E + e) * image + first;
    const T* g = mixed;
    if (s.source == MIXED_NODES)
      mix_nodes<T>(s.given, n * image + first, gamma(n, e * s.nodes), s.gamma_edge, s.nodes, (to - from) * s.Wo, s.Co,
                   mixed, nullptr);
    else if (s.source == NODES)
      g = static_cast<const T*>(s.given[t]) + n * image + first;
    else
      g = static_cast<const T*>(s.gradient) + (n * E + e) * image + first;
    const T image_gamma = s.source == NODES && s.gamma_image ? *gamma(n, e) : T(1);
    const int64_t Wo = s.Wo, C = s.Co, apart = Cop, stride = s.stride, W = s.W;
    const bool average = s.pool == AVERAGE;
    for (int64_t h = 0; h < to - from; ++h)
      for_groups<T>(C, [&](auto group) {
        constexpr int B = group.size;
        V by_gradient[B], by_output[B], constant[B];
        unrolled<B>([&](auto i) ALWAYS {
          by_gradient[i] = image_gamma * Sd::load(a + e * Cop + group.at(i));
          by_output[i] = Sd::load(b + e * Cop + group.at(i));
          constant[i] = Sd::load(d + e * Cop + group.at(i));
        });
        const int64_t rows = average ? pixels_inside(from + h, stride, s.H) : 1;
        const T *given = g + h * Wo * C, *output = y + h * Wo * C;
        T* result = target + h * row * Cop;
        prefetcher.step();
        for (int64_t w = 0; w < Wo; ++w)
          unrolled<B>([&](auto i) ALWAYS {
            V v = by_output[i] * group.load(output + w * C, i) + constant[i];
            v = by_gradient[i] * group.load(given + w * C, i) + v;
            if (average) v /= static_cast<T>(rows * pixels_inside(w, stride, W));
            Sd::store(result + w * apart + group.at(i), v);
          });
      });
  }

  // Backward of the activation: passes rows [from, to) of the activated input's gradient, `row` values apart, on to the
  // input, that is to the states (first stage) or to the stage before.
  // edge_sums (2, Cip): sums of that gradient, and of its product with the normalised input without weight and bias.
  void activation_backward(int64_t n, int64_t t, int64_t e, int64_t from, int64_t to, const T* by_input, int64_t row,
                           const T* plane, T* edge_sums, Prefetcher& prefetcher) const {
    if (s.first) {
      const int64_t C = s.Ci / s.parts;
      for (int64_t i = 0; i < s.parts; ++i) {
        const int64_t number = e / s.T * s.parts + i, image = n * s.H * s.W * C;
        T* target = static_cast<T*>(s.to_states[number]) + image;
        const T* onto = static_cast<const T*>(s.onto_states[number]);
        activation_backward_channels<true>(n, e, from, to, by_input, row, plane, i * C, C, target,
                                           t > 0  ? target
                                           : onto ? onto + image
                                                  : nullptr,
                                           edge_sums, prefetcher);
      }
    } else {
      T* target = static_cast<T*>(s.in_gradient) + (n * E + e) * s.H * s.W * s.Ci;
      activation_backward_channels<false>(n, e, from, to, by_input, row, plane, 0, s.Ci, target, nullptr, edge_sums,
                                          prefetcher);
    }
  }

  // `activation_backward` for C channels from `begin` on: target = gradient + onto, where onto may be null.
  template <bool first>
  void activation_backward_channels(int64_t n, int64_t e, int64_t from, int64_t to, const T* by_input, int64_t row,
                                    const T* plane, int64_t begin, int64_t C, T* target, const T* onto, T* edge_sums,
                                    Prefetcher& prefetcher) const {
    const int64_t step = C;
    const bool affine = !first && s.in_inverse, add = first && onto;
    const int64_t W = s.W, apart = Cip, in_step = in_pixel();
    const V zero = {}, six = zero + T(6);
    with_activation(s.activation, [&](auto activation) {
      for (int64_t h = from; h < to; ++h)
        for_groups<T>(C, [&](auto group) {
          constexpr int B = group.size;
          V inverse[B] = {}, offset[B] = {}, sum[B] = {}, sum_y[B] = {};
          if (affine)
            unrolled<B>([&](auto i) ALWAYS {
              inverse[i] = group.load(static_cast<const T*>(s.in_inverse) + e * s.Ci, i);
              offset[i] = group.load(static_cast<const T*>(s.in_offset) + e * s.Ci, i);
            });
          const T* gradients = by_input + (scatters() ? h : h - from) * row + begin;
          const T* seen = plane + ((h + pad) * Wp + pad) * Cip + begin;
          const T* y = input(n, e) + h * W * in_step;
          T* p = target + h * W * step;
          const T* before = add ? onto + h * W * step : p;
          prefetcher.step();
          for (int64_t w = 0; w < W; ++w) {
            V v[B];
            unrolled<B>([&](auto i) ALWAYS {
              v[i] = Sd::load(gradients + w * apart + group.at(i));
              const V active = Sd::load(seen + w * apart + group.at(i));
              if (activation != NONE) v[i] = active > zero ? v[i] : zero;
              if (activation == RELU6) v[i] = active < six ? v[i] : zero;
              if (!first) {
                sum[i] += v[i];
                // without weight and bias `active` is the normalised input wherever the gradient is not zero
                sum_y[i] += v[i] * (affine ? group.load(y + w * in_step, i) * inverse[i] + offset[i] : active);
              }
              if (add) v[i] += group.load(before + w * step, i);
            });
            unrolled<B>([&](auto i) ALWAYS { group.store(p + w * step, v[i], i); });
          }
          if (first) return;
          unrolled<B>([&](auto i) ALWAYS {
            sum[i] += Sd::load(edge_sums + group.at(i));
            sum_y[i] += Sd::load(edge_sums + Cip + group.at(i));
          });
          unrolled<B>([&](auto i) ALWAYS {
            Sd::store(edge_sums + group.at(i), sum[i]);
            Sd::store(edge_sums + Cip + group.at(i), sum_y[i]);
          });
        });
    });
  }
  // Whether the convolution's gradient is scattered onto the input's plane instead of gathered by a flipped kernel.
  bool scatters() const { return s.odd || (s.k && s.stride != 1); }

  void forward(bool prepared = false) const;
  void backward() const;
};

}  // namespace
