// Distribution of work over the threads of an OpenMP region.

#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include <omp.h>

namespace {

// Distributes the units [0, count) over the threads of a parallel region: each thread takes its own share in order,
// then steals from the end of others' shares. So the next unit is mostly the one that was prefetched, and no thread is
// idle for long.
class WorkShares {
  struct alignas(64) Share {
    std::atomic<uint64_t> left;  // lower half: the first unit left, upper half: the end
  };
  std::vector<Share> shares_;

  // Takes the first or the last unit of a share; -1 if none is left.
  static int64_t take(Share& share, bool first) {
    uint64_t left = share.left.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t from = left & 0xffffffff, to = left >> 32;
      if (from >= to) return -1;
      const uint64_t then = first ? left + 1 : left - (uint64_t{1} << 32);
      if (share.left.compare_exchange_weak(left, then, std::memory_order_relaxed))
        return static_cast<int64_t>(first ? from : to - 1);
    }
  }

 public:
  WorkShares(int64_t count, int64_t threads) : shares_(threads) {
    for (int64_t i = 0; i < threads; ++i) {
      const uint64_t from = count * i / threads, to = count * (i + 1) / threads;
      shares_[i].left.store(to << 32 | from, std::memory_order_relaxed);
    }
  }
  // Calls f with one unit after the other; every thread of the region must call this.
  template <class F>
  void each(F f) {
    const int64_t threads = shares_.size(), own = omp_get_thread_num();
    for (int64_t i = 0; i < threads; ++i)
      for (int64_t unit; (unit = take(shares_[(own + i) % threads], i == 0)) >= 0;) f(unit);
  }
};

// Calls f with each of `count` units in a parallel region.
template <class F>
void parallel_for(int64_t count, int64_t threads, F f) {
  WorkShares shares(count, threads);
#pragma omp parallel num_threads(static_cast<int>(threads))
  shares.each(f);
}

}  // namespace
