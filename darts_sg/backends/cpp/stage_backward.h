// Backward pass of a stage: gradients of its input and of its weights.
//
// Everything between the input and the output before BatchNorm is computed again instead of kept.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>

#include <omp.h>

#include "stage.h"
#include "threads.h"

namespace {

// Gradients flow output (before BatchNorm, Cop) -> 1x1 convolution -> middle (Cmp) -> depthwise or pool -> input (Cip)
// -> activation. Every image and every chunk of the batch is summed apart and added in one order.
template <class T>
void StageKernel<T>::backward() const {
  const int64_t chunks = std::min(s.N, CHUNKS), channels = E * s.Ci;
  const bool by_taps = s.depthwise_gradient, by_matrix = s.pointwise_gradient;
  // of each chunk, set to zero by the thread that begins it
  const int64_t taps_size = by_taps ? kk * Cip : 0, matrix_size = by_matrix ? matrix_rows() * Cmp : 0;
  Buffer<T> taps_gradient(chunks * E * taps_size, false), matrix_gradient(chunks * E * matrix_size, false);
  Buffer<double> sums(s.first ? 0 : s.N * channels, false), sums_y(s.first ? 0 : s.N * channels, false);
  // BatchNorm's backward for each channel: gradient * a + output * b + d
  Buffer<T> a(E * Cop), b_(E * Cop), d(E * Cop);
  const double count = static_cast<double>(s.N * P * pixels);
  // `sum` or `sum_y` of one channel over the images side by side; where an operation is shared, the weighted sum over
  // the nodes
  const auto total = [&](const double* parts, int64_t e, int64_t c) {
    double sum = 0;
    for (int64_t at = c % co; at < s.Co; at += co) {
      if (s.source != MIXED_NODES) sum += parts[e * s.Co + at];
      for (int64_t t = e * s.nodes; s.source == MIXED_NODES && t < (e + 1) * s.nodes; ++t)
        sum += (s.gamma_image ? 1.0 : *gamma(0, t)) * parts[t * s.Co + at];
    }
    return sum;
  };
  for (int64_t e = 0; e < E; ++e)
    for (int64_t c = 0; c < s.Co; ++c) {
      const double scale = static_cast<const T*>(s.scale)[e * s.Co + c];
      const double of_nodes = s.source == NODES && !s.gamma_image ? *gamma(0, e) : 1.0, factor = scale * of_nodes;
      const double sum = total(s.sum, e, c), sum_y = total(s.sum_y, e, c);
      if (s.weight_gradient) static_cast<T*>(s.weight_gradient)[e * co + c % co] = static_cast<T>(of_nodes * sum_y);
      if (s.bias_gradient) static_cast<T*>(s.bias_gradient)[e * co + c % co] = static_cast<T>(of_nodes * sum);
      a.get()[e * Cop + c] = static_cast<T>(factor);
      if (!s.training) continue;
      const double inverse = static_cast<const T*>(s.inverse)[e * s.Co + c];
      const double offset = static_cast<const T*>(s.offset)[e * s.Co + c];
      const double mean = sum / count, mean_y = sum_y / count;
      b_.get()[e * Cop + c] = static_cast<T>(-factor * inverse * mean_y);
      d.get()[e * Cop + c] = static_cast<T>(-factor * (mean + offset * mean_y));
    }
  // At stride 1 the input's gradient is a convolution (or a gather) of the middle gradient, which therefore is a plane
  // with a border of G pixels; otherwise the middle gradient is scattered onto a plane as large as the input's.
  const bool scatter = scatters(), border = s.k && !scatter;
  const int64_t G = border ? pad : 0, G_row = s.Wo + 2 * G;
  // whether rows that are scattered onto are passed on as soon as they are complete
  const bool progressive = scatter && s.k && !s.pool;
  std::atomic<bool> out_of_memory{false};
  // edges that write to the same state's gradient belong to one unit of work
  const int64_t edges_per_unit = s.first ? s.T : 1, groups = E / edges_per_unit;
  WorkShares shares(chunks * groups, s.threads);
#pragma omp parallel num_threads(static_cast<int>(s.threads))
  {
    Scratch<T>& scratch = Scratch<T>::of_thread();
    // the input's plane, that of the middle gradient where it has a border, and that of the input's gradient where the
    // middle gradient is scattered
    Window<T> window{}, middle_window{0, G_row * Cmp, s.Ho + 2 * G}, scattered{0, Wp * Cip, Hp};
    T *middle = nullptr, *output_gradient = nullptr, *maxima = nullptr, *mixed = nullptr, *input_gradient = nullptr,
      *edge_sums = nullptr;
    try {
      window = bordered(scratch);
      middle = scratch.take(by_matrix && has_middle() ? R * s.Wo * Cmp : 0);
      output_gradient = scratch.take(s.pointwise ? R * s.Wo * Cop : 0);
      if (border) middle_window.capacity = window_rows(s.Ho + 2 * G, G_row * Cmp);
      if (scatter) scattered.capacity = window_rows(Hp, Wp * Cip);
      middle_window.memory = scratch.zeros(border ? middle_window.capacity * middle_window.row : R * s.Wo * Cmp);
      maxima = scratch.take(border && s.pool == MAX ? (s.Ho + 2 * G) * G_row * Cip : 0);
      mixed = scratch.take(s.source == MIXED_NODES ? R * s.Wo * s.Co : 0);
      scattered.memory = scratch.take(scatter ? scattered.capacity * scattered.row : 0);
      input_gradient = scratch.take(border ? (R + pad) * s.W * Cip : 0);
      edge_sums = scratch.take(2 * Cip);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
    Prefetcher prefetcher;
    shares.each([&](int64_t unit) {
      if (out_of_memory) return;
      const int64_t chunk = unit / groups, first_e = unit % groups * edges_per_unit, at = chunk * E + first_e;
      std::fill_n(taps_gradient.get() + at * taps_size, edges_per_unit * taps_size, T(0));
      std::fill_n(matrix_gradient.get() + at * matrix_size, edges_per_unit * matrix_size, T(0));
      for (int64_t n = chunk * s.N / chunks; n < (chunk + 1) * s.N / chunks; ++n)
        for (int64_t e = first_e; e < first_e + edges_per_unit; ++e) {
          const int64_t t = e % s.T;
          const bool loaded_already = s.first && t > 0;  // the plane holds this state already
          const bool last_of_image = e + 1 == first_e + edges_per_unit;
          const int64_t next_n = n + last_of_image, next_e = last_of_image ? first_e : e + 1;
          if (next_n < s.N) {  // prefetch what the next edge of this unit reads
            const int64_t next = next_n * E + next_e, size = pixels * s.Co;
            prefetcher.restart();
            prefetcher.add(static_cast<const T*>(s.out) + next * size, size);
            if (s.source == EDGES) prefetcher.add(static_cast<const T*>(s.gradient) + next * size, size);
            if (s.source == NODES) prefetcher.add(static_cast<const T*>(s.given[next_e % s.T]) + next_n * size, size);
            prefetch_input(next_n, next_e, prefetcher);
            prefetcher.spread_over((loaded_already ? 1 : 2) * s.H * load_groups() + s.Ho * num_groups<T>(s.Co));
          }
          const bool part_of_middle = border && middle_window.capacity < s.Ho + 2 * G;
          middle_window.base = scattered.base = 0;
          if (part_of_middle) middle_window.zero(0, G);
          int64_t cleared = 0;  // rows of `scattered` that are ready to be added to
          std::memset(edge_sums, 0, static_cast<size_t>(2 * Cip) * sizeof(T));
          // Blocks of output rows. A row of the input's gradient is complete, and passed on, once all output rows that
          // see it are done: `finished` counts these.
          int64_t loaded = begin(0, window);
          for (int64_t from = 0, finished = 0, to; from < s.Ho; from = to) {
            to = std::min(from + R, s.Ho);
            if (!loaded_already)
              loaded = load_for(to, n, e, loaded, std::min(from * s.stride, finished + pad), window, prefetcher);
            const T* plane = window.origin();
            if (part_of_middle) {
              const int64_t end = to + G + (to == s.Ho ? G : 0);
              middle_window.advance(finished, from + G, end);
              middle_window.zero(to + G, end);
            }
            if (scatter) {
              const int64_t end = progressive ? (to - 1) * s.stride + s.dilation * (s.k - 1) + 1 : Hp;
              const int64_t last = to == s.Ho ? Hp : end;
              scattered.advance(finished + pad, cleared, last);
              scattered.zero(cleared, last);
              cleared = last;
            }
            T *middle_gradient = middle_window.origin(), *scattered_plane = scattered.origin();
            // rows [from, to) of the middle gradient's plane, G_row pixels apart
            T* interior = middle_gradient + (border ? ((from + G) * G_row + G) * Cip : 0);
            norm_backward(n, t, e, from, to, a.get(), b_.get(), d.get(), mixed,
                          s.pointwise ? output_gradient : interior, s.pointwise ? s.Wo : G_row, prefetcher);
            // 1x1 convolution: the middle gradient, row by row where its plane has a border
            if (s.pointwise) {
              const T* m = transposed.get() + e * matrix_rows() * Cmp;
              if (B)
                with_block<T>(B, [&](auto block) {
                  const int64_t rows = border ? to - from : 1, count = border ? s.Wo : (to - from) * s.Wo;
                  for (int64_t h = 0; h < rows; ++h)
                    block_pointwise<T, block>(output_gradient + h * s.Wo * Cop, m, count, interior + h * G_row * Cip);
                });
              else if (border)
                for (int64_t h = 0; h < to - from; ++h)
                  pointwise<T>(output_gradient + h * s.Wo * Cop, Cop, s.Co, m, Cm, Cip, s.Wo,
                               interior + h * G_row * Cip);
              else
                pointwise<T>(output_gradient, Cop, s.Co, m, Cm, Cmp, (to - from) * s.Wo, interior);
            }
            // gradients of the weights, added to those of this chunk of the batch
            if (by_matrix) {
              const T* in = plane + from * Wp * Cip;
              if (has_middle()) convolve(plane, e, from, to, middle), in = middle;
              T* gradient = matrix_gradient.get() + (chunk * E + e) * matrix_rows() * Cmp;
              if (!B) pointwise_weight<T>(output_gradient, Cop, s.Co, in, Cm, Cmp, (to - from) * s.Wo, gradient);
              with_block<T>(B, [&](auto block) {
                block_pointwise_weight<T, block>(output_gradient, in, (to - from) * s.Wo, gradient);
              });
            }
            const T* in_rows = plane + from * s.stride * Wp * Cip;
            if (by_taps)
              with_kernel_size(s.k, [&](auto k) {
                // registers beside the sums: four gradients and one input
                constexpr int rows = k * k <= REGISTERS - 5 ? k : 1;
                depthwise_weight<T, k, rows>(in_rows, Wp * Cip, s.stride, s.dilation, interior, G_row * Cip, to - from,
                                             s.Wo, Cip, taps_gradient.get() + (chunk * E + e) * kk * Cip);
              });
            // rows [finished, complete) of the input's gradient can be passed on
            const int64_t complete = to == s.Ho    ? s.H
                                     : progressive ? std::max<int64_t>(0, to * s.stride - pad)
                                     : scatter     ? 0
                                                   : to - G;
            // stride 2: scatter these rows onto the input's plane
            if (scatter && s.pool)
              pool_scatter<T>(in_rows, Wp * Cip, s.stride, s.pool, to - from, s.Wo, Cip, interior,
                              scattered_plane + from * s.stride * Wp * Cip);
            if (s.odd)
              for_pairs(from, to, [&](int64_t p, int64_t even, int64_t odd) {
                std::memcpy(scattered_plane + even, interior + p * Cmp, Cip * sizeof(T));
                std::memcpy(scattered_plane + odd, interior + p * Cmp + Cip, Cip * sizeof(T));
              });
            if (scatter && s.k && !s.pool)
              with_kernel_size(s.k, [&](auto k) {
                depthwise_scatter<T, k>(scattered_plane + from * s.stride * Wp * Cip, Wp * Cip, s.stride, s.dilation,
                                        taps.get() + e * kk * Cip, to - from, s.Wo, Cip, interior, s.Wo * Cip);
              });
            // stride 1: gather the complete rows
            if (border && s.pool == MAX)
              find_maxima<T>(in_rows, Wp * Cip, to - from, s.Wo, Cip, maxima + ((from + G) * G_row + G) * Cip,
                             G_row * Cip);
            if (complete <= finished) continue;
            if (border && s.pool == MAX)
              pool_gather<T>(middle_gradient + finished * G_row * Cip, maxima + finished * G_row * Cip, G_row * Cip,
                             complete - finished, s.W, Cip, input_gradient);
            else if (border)
              with_kernel_size(s.k, [&](auto k) {
                depthwise<T, k>(middle_gradient + finished * G_row * Cip, G_row * Cip, 1, s.dilation,
                                flipped.get() + e * kk * Cip, complete - finished, s.W, Cip, input_gradient);
              });
            const T* by_input = border    ? input_gradient
                                : scatter ? scattered_plane + (pad * Wp + pad) * Cip
                                          : middle_gradient;
            activation_backward(n, t, e, finished, complete, by_input, (scatter ? Wp : s.W) * Cip, plane, edge_sums,
                                prefetcher);
            finished = complete;
          }
          for (int64_t c = 0; !s.first && c < s.Ci; ++c) {
            sums.get()[n * channels + e * s.Ci + c] = edge_sums[c];
            sums_y.get()[n * channels + e * s.Ci + c] = edge_sums[Cip + c];
          }
        }
    });
  }
  if (out_of_memory) throw std::bad_alloc();
  if (!s.first) {
    sum_images(sums.get(), s.N, channels, s.in_sum);
    sum_images(sums_y.get(), s.N, channels, s.in_sum_y);
  }
  // unpack the weights' gradients, adding up the chunks, and the images side by side, in order
  for (int64_t e = 0; e < E; ++e)
    for (int64_t c = 0; by_taps && c < ci; ++c)
      for (int64_t i = 0; i < kk; ++i) {
        T sum = 0;
        for (int64_t q = 0; q < chunks; ++q)
          for (int64_t at = c; at < s.Ci; at += ci) sum += taps_gradient.get()[((q * E + e) * kk + i) * Cip + at];
        static_cast<T*>(s.depthwise_gradient)[(e * ci + c) * kk + i] = sum;
      }
  if (!by_matrix) return;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(s.threads))
  for (int64_t eo = 0; eo < E * co; ++eo) {
    const int64_t e = eo / co, o = eo % co;
    T* gradient = weight_row<T>(s.pointwise_gradient, s.odd_gradient, e, o);
    for (int64_t c = 0; B && c < ci; ++c) {
      T sum = 0;
      for (int64_t q = 0; q < chunks * P; ++q)
        sum += matrix_gradient.get()[((q / P * E + e) * B + (o - c + B) % B) * Cmp + q % P * ci + c];
      gradient[c] = sum;
    }
    if (B) continue;
    for_groups<T>(ci, [&](auto group) {
      V sum[group.size] = {};
      for (int64_t q = 0; q < chunks * P; ++q) {
        const int64_t image = q % P, row = (q / P * E + e) * s.Co + image * co + o;
        const T* from = matrix_gradient.get() + row * Cmp + half(o) + image * ci;
        unrolled<group.size>([&](auto i) ALWAYS { sum[i] += Sd::load(from + group.at(i)); });
      }
      unrolled<group.size>([&](auto i) ALWAYS { group.store(gradient, sum[i], i); });
    });
  }
}

}  // namespace
