// Memory for planes and packed weights, and prefetching of what is needed next.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// An array aligned to cache lines, filled with zeros unless told otherwise. Throws std::bad_alloc.
template <class T>
struct Buffer {
  std::unique_ptr<T, decltype(&std::free)> memory{nullptr, &std::free};
  T* get() const { return memory.get(); }
  explicit Buffer(int64_t count = 0, bool zeros = true) {
    if (count <= 0) return;
    // 64 bytes more: a vector may be read where fewer values are left
    size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
    memory.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    if (zeros) std::memset(memory.get(), 0, bytes);
  }
};

// Scratch memory of a thread, kept between calls so that pages are not faulted in again, and in huge pages, of which
// the processor has to look up few. `take` returns uninitialised memory, `zeros` cleared memory; both are valid until
// `of_thread` is called again. Throws std::bad_alloc.
template <class T>
class Scratch {
  static constexpr size_t PAGE = size_t{1} << 21;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  struct Region {
    std::unique_ptr<char, Free> memory;
    size_t bytes;
  };
  std::vector<Region> regions_;
  size_t region_ = 0, used_ = 0;  // the region that `take` returns next, and its bytes in use

  // The first free region from this one on that has so many bytes.
  void find_region(size_t bytes) {
    while (region_ < regions_.size() && used_ + bytes > regions_[region_].bytes) ++region_, used_ = 0;
    if (region_ < regions_.size()) return;
    const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
    char* memory = static_cast<char*>(std::aligned_alloc(PAGE, whole));
    if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(memory, whole, MADV_HUGEPAGE);  // without effect where there are none
#endif
    regions_.push_back({std::unique_ptr<char, Free>(memory), whole});
  }

 public:
  T* take(int64_t count) {
    if (count <= 0) return nullptr;
    // 64 bytes more: a vector may be read where fewer values are left
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
    find_region(bytes);
    char* found = regions_[region_].memory.get() + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(found);
  }
  T* zeros(int64_t count) {
    T* found = take(count);
    if (count > 0) std::memset(found, 0, static_cast<size_t>(count) * sizeof(T));
    return found;
  }
  static Scratch& of_thread() {
    thread_local Scratch scratch;
    scratch.region_ = scratch.used_ = 0;
    return scratch;
  }
};

// The rows of a large plane that are needed at a time: only so many are kept, so that they stay in the L2 cache.
template <class T>
struct Window {
  T* memory;
  int64_t row, capacity, base = 0;  // values of a row, rows in memory, and the number of the first of them
  // Where row 0 would be, so that row r is origin() + r * row if it is kept.
  T* origin() const { return memory - base * row; }
  void zero(int64_t from, int64_t to) {
    if (from < to) std::memset(origin() + from * row, 0, static_cast<size_t>((to - from) * row) * sizeof(T));
  }
  // Makes room for rows before `end`. Rows [keep, filled) stay, those before are lost.
  void advance(int64_t keep, int64_t filled, int64_t end) {
    if (end <= base + capacity) return;
    std::memmove(memory, origin() + keep * row, static_cast<size_t>((filled - keep) * row) * sizeof(T));
    base = keep;
  }
};

// Prefetches what the next edge needs, a few cache lines at a time, while the current edge is computed.
class Prefetcher {
  static constexpr int RANGES = 8;
  static constexpr int64_t MOST_LINES = 12288;  // cache lines of 64 bytes
  const char *at_[RANGES] = {}, *end_[RANGES] = {};
  int ranges_ = 0, lines_per_step_ = 0;
  int64_t lines_ = 0;

 public:
  // Drops all ranges.
  void restart() { ranges_ = lines_per_step_ = lines_ = 0; }
  // Adds a range of memory; beyond RANGES it is ignored.
  template <class T>
  void add(const T* start, int64_t count) {
    if (!start || ranges_ == RANGES) return;
    at_[ranges_] = reinterpret_cast<const char*>(start);
    end_[ranges_++] = reinterpret_cast<const char*>(start + count);
    lines_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64;
  }
  // Spreads the ranges over the next `calls` calls of `step`. What exceeds the L2 cache would push itself out of it
  // before it is needed: then nothing is prefetched, and the processor's own prefetching has to do.
  void spread_over(int64_t calls) {
    if (lines_ > MOST_LINES) return restart();
    lines_per_step_ = static_cast<int>((lines_ + calls - 1) / std::max<int64_t>(1, calls));
  }
  void step() {
    int left = lines_per_step_;
    for (int i = 0; i < ranges_; ++i)
      for (; left > 0 && at_[i] < end_[i]; at_[i] += 64, --left) __builtin_prefetch(at_[i], 0, 2);
  }
};

}  // namespace
