// The few functions of OpenMP that the kernels call, on plain threads, for ThreadSanitizer.
//
// GCC's OpenMP library is not instrumented: ThreadSanitizer does not see that its regions wait for their threads, and
// would call each read after a region a race. Here a region starts threads and joins them, which it does see. Linked
// into the library of the kernels, these functions come before those of the OpenMP library that PyTorch has loaded.

#include <pthread.h>

#include <thread>
#include <vector>

namespace {

struct Team {
  unsigned size;
  pthread_barrier_t barrier;
};

thread_local Team* team = nullptr;
thread_local int number = 0;

void run(void (*region)(void*), void* data, Team* its_team, int its_number) {
  team = its_team;
  number = its_number;
  region(data);
  team = nullptr;
  number = 0;
}

}  // namespace

extern "C" {

__attribute__((visibility("hidden"))) int omp_get_thread_num() { return number; }

__attribute__((visibility("hidden"))) int omp_get_num_threads() { return team ? static_cast<int>(team->size) : 1; }

__attribute__((visibility("hidden"))) void GOMP_barrier() {
  if (team && team->size > 1) pthread_barrier_wait(&team->barrier);
}

// `region` is the body of a parallel region, `data` its variables; the flags say how threads are bound to processors.
__attribute__((visibility("hidden"))) void GOMP_parallel(void (*region)(void*), void* data, unsigned num_threads,
                                                         unsigned) {
  Team own{num_threads ? num_threads : 1, {}};
  pthread_barrier_init(&own.barrier, nullptr, own.size);
  std::vector<std::thread> others;
  for (unsigned i = 1; i < own.size; ++i) others.emplace_back(run, region, data, &own, static_cast<int>(i));
  run(region, data, &own, 0);
  for (std::thread& other : others) other.join();
  pthread_barrier_destroy(&own.barrier);
}
}
