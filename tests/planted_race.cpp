// Shows that ThreadSanitizer sees what the threads of the kernels do: with an argument, the units of a parallel loop add
// to one number, which is a race; without one, each unit has a number of its own, which is none.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "threads.h"

int main(int argc, char**) {
  constexpr int64_t THREADS = 3;
  std::atomic<int64_t> arrived{0};
  std::vector<int64_t> sums(THREADS);
  parallel_for(THREADS, THREADS, [&](int64_t unit) {
    // each unit has a thread of its own; a relaxed number orders nothing else
    arrived.fetch_add(1, std::memory_order_relaxed);
    while (arrived.load(std::memory_order_relaxed) < THREADS) std::this_thread::yield();
    sums[argc > 1 ? 0 : unit] += unit;
  });
  int64_t read = 0;  // after the region, by the first thread: no race either
  for (int64_t sum : sums) read += sum;
  return read < 0;
}
