// Forward pass of a stage, with the batch statistics of its BatchNorm.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

#include <omp.h>

#include "stage.h"
#include "threads.h"

namespace {

// Scale and shift of the stage's BatchNorm from each image's mean and sum of squared deviations, which are combined as
// by Chan, Golub and LeVeque (1983); in train mode it also updates the running statistics.
// channels: of all edges and one image. Scale and shift are written once for each of the images side by side.
template <class T>
void finish_statistics(const StageArgs& s, int64_t channels, const double* mean, const double* squares) {
  T *scale = static_cast<T*>(s.scale), *shift = static_cast<T*>(s.shift);
  const int64_t images = s.N * s.packed, co = s.Co / s.packed;
  if (!s.norm) {
    std::fill(scale, scale + channels * s.packed, T(1));
    std::fill(shift, shift + channels * s.packed, T(0));
    return;
  }
  T *inverse = static_cast<T*>(s.inverse), *offset = static_cast<T*>(s.offset);
  const T *weight = static_cast<const T*>(s.weight), *bias = static_cast<const T*>(s.bias);
  T *running_mean = static_cast<T*>(s.running_mean), *running_var = static_cast<T*>(s.running_var);
  const double pixels = static_cast<double>(s.Ho * s.Wo), count = pixels * static_cast<double>(images);
  std::vector<double> means(channels), variances(channels);
  if (s.training) {
    // squared deviations within the images, and of the images' means from the mean of all
    sum_images(mean, images, channels, means.data());
    sum_images(squares, images, channels, variances.data());
    for (double& m : means) m /= static_cast<double>(images);
    for (int64_t n = 0; n < images; ++n)
      for (int64_t c = 0; c < channels; ++c) {
        const double d = mean[n * channels + c] - means[c];
        variances[c] += pixels * d * d;
      }
  }
  for (int64_t c = 0; c < channels; ++c) {
    double m = means[c], v = variances[c] / count;
    if (!s.training) {
      m = running_mean[c];
      v = running_var[c];
    } else if (running_mean) {
      const double unbiased = v * count / std::max(1.0, count - 1);
      running_mean[c] = static_cast<T>((1 - s.momentum) * running_mean[c] + s.momentum * m);
      running_var[c] = static_cast<T>((1 - s.momentum) * running_var[c] + s.momentum * unbiased);
    }
    const double by = 1 / std::sqrt(v + s.eps);
    for (int64_t q = 0; q < s.packed; ++q) {
      const int64_t at = (c / co * s.packed + q) * co + c % co;
      inverse[at] = static_cast<T>(by);
      offset[at] = static_cast<T>(-m * by);
      if (weight) {
        scale[at] = static_cast<T>(weight[c] * by);
        shift[at] = static_cast<T>(bias[c] - m * by * weight[c]);
      }
    }
  }
}

// Computes `out` and, in train mode, each image's mean and sum of squared deviations. Without statistics, few images are
// divided into bands of rows, so that each thread has one.
// prepared: scale and shift of the stage's BatchNorm are known.
template <class T>
void StageKernel<T>::forward(bool prepared) const {
  const int64_t channels = E * co, of_statistics = s.training ? s.N * P * channels : 0;
  const int64_t units = s.N * E;
  const int64_t bands = s.training || !units ? 1 : std::clamp<int64_t>((s.threads + units - 1) / units, 1, s.Ho);
  Buffer<double> mean(of_statistics), squares(of_statistics);
  std::atomic<bool> out_of_memory{false};  // an exception must not leave a parallel region
  WorkShares shares(units * bands, s.threads);
#pragma omp parallel num_threads(static_cast<int>(s.threads))
  {
    Scratch<T>& scratch = Scratch<T>::of_thread();
    Window<T> window{};
    T *middle = nullptr, *padded_output = nullptr, *sums = nullptr;
    try {
      window = bordered(scratch, bands);
      middle = scratch.take(has_middle() && s.pointwise ? R * s.Wo * Cmp : 0);
      padded_output = scratch.take(s.Co < Cop ? R * s.Wo * Cop : 0);
      sums = scratch.take(3 * Cop);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
    Prefetcher prefetcher;
    const T* in_plane = nullptr;
    shares.each([&](int64_t part) {
      if (out_of_memory) return;
      const int64_t unit = part / bands, band = part % bands, n = unit / E, e = unit % E;
      // the plane holds this state already
      const bool loaded_already = s.first && in_plane == input(n, e) && window.capacity == Hp && bands == 1;
      in_plane = input(n, e);
      if (unit + 1 < s.N * E) {
        prefetcher.restart();
        prefetch_input((unit + 1) / E, (unit + 1) % E, prefetcher);
        prefetcher.spread_over(s.H * load_groups());
      }
      // blocks of output rows: load, convolve, multiply, store and sum up while the block is in the L1 cache
      const int64_t end = (band + 1) * s.Ho / bands;
      int64_t loaded = begin(band * s.Ho / bands, window);
      for (int64_t from = band * s.Ho / bands, to; from < end; from = to) {
        to = std::min(from + R, end);
        if (!loaded_already) loaded = load_for(to, n, e, loaded, from * s.stride, window, prefetcher);
        const T* plane = window.origin();
        const int64_t count = (to - from) * s.Wo, C = s.Co, apart = bare() ? C : Cop;
        const T* matrix_input = plane + from * Wp * Cip;
        T* out = static_cast<T*>(s.out) + (unit * pixels + from * s.Wo) * C;
        // rows of padded channels go to scratch memory first
        T* result = C == apart ? out : padded_output;
        if (has_middle()) {
          T* target = s.pointwise ? middle : result;
          convolve(plane, e, from, to, target);
          matrix_input = target;
        }
        if (s.pointwise && !B)
          pointwise<T>(matrix_input, Cmp, Cm, matrix.get() + e * Cm * Cop, s.Co, Cop, count, result);
        with_block<T>(s.pointwise ? B : 0, [&](auto block) {
          block_pointwise<T, block>(matrix_input, matrix.get() + e * B * Cop, count, result);
        });
        for_groups<T>(C, [&](auto group) {
          constexpr int B = group.size;
          const auto load = [&](int64_t p, int i) ALWAYS { return Sd::load(result + p * apart + group.at(i)); };
          if (result != out)
            for (int64_t p = 0; p < count; ++p)
              unrolled<B>([&](auto i) ALWAYS { group.store(out + p * C, load(p, i), i); });
          if (!s.training) return;
          // Sums of the deviations from the first row's mean and of their squares: a shift near the mean keeps the
          // variance exact where the mean is much larger than the deviation.
          V pivot[B], total[2 * B];
          if (from == 0) {
            sum_over<T>(s.Wo, pivot, load);
            unrolled<B>([&](auto i) ALWAYS { Sd::store(sums + group.at(i), pivot[i] / static_cast<T>(s.Wo)); });
          }
          unrolled<B>([&](auto i) ALWAYS { pivot[i] = Sd::load(sums + group.at(i)); });
          sum_over<T>(count, total, [&](int64_t p, auto i) ALWAYS {
            const V v = load(p, i % B) - pivot[i % B];
            return i < B ? v : v * v;
          });
          unrolled<2 * B>([&](auto i) ALWAYS {
            if (from > 0) total[i] += Sd::load(sums + (1 + i / B) * Cop + group.at(i % B));
          });
          unrolled<2 * B>([&](auto i) ALWAYS { Sd::store(sums + (1 + i / B) * Cop + group.at(i % B), total[i]); });
        });
      }
      for (int64_t c = 0; s.training && c < s.Co; ++c) {
        const double sum = sums[Cop + c], all = static_cast<double>(pixels);
        const int64_t at = (n * P + c / co) * channels + e * co + c % co;
        mean.get()[at] = sums[c] + sum / all;
        squares.get()[at] = std::max(0.0, sums[2 * Cop + c] - sum * sum / all);
      }
    });
  }
  if (out_of_memory) throw std::bad_alloc();
  if (!prepared) finish_statistics<T>(s, channels, mean.get(), squares.get());
}

}  // namespace
