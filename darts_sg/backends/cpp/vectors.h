// SIMD vectors of channels, loops that are unrolled at compile time, and sums over pixels and images.
//
// Kernels must keep their sums in registers, so whatever belongs to an inner loop is inlined and unrolled by force.
// Vectors may alias everything: a loop copies what it does not change to a local constant instead of reading it through
// a pointer each time.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "arguments.h"

// On lambdas and functions that must be inlined whatever the compiler thinks of it.
#define ALWAYS __attribute__((always_inline))
#define ALWAYS_INLINE inline ALWAYS

namespace {

// Bytes of a vector register and number of registers. The compiler would keep wider vectors in memory.
#if defined(__AVX512F__)
constexpr int64_t BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int64_t BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int64_t BYTES = 16, REGISTERS = 32;
#else
constexpr int64_t BYTES = 16, REGISTERS = 16;
#endif

// How much of a vector is used, in quarters; SOME is any number of values.
enum Fraction : int { SOME = 0, QUARTER = 1, HALF = 2, WHOLE = 4 };

// A vector V of L values, with loads and stores of a whole vector or of its first values.
template <class T, int64_t Bytes = BYTES>
struct Simd {
  static constexpr int64_t L = Bytes / sizeof(T);
  typedef T V __attribute__((vector_size(L * sizeof(T)), aligned(sizeof(T)), may_alias));
  static V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }
  typedef T Half __attribute__((vector_size(std::max<int64_t>(1, L / 2) * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef T Quarter
      __attribute__((vector_size(std::max<int64_t>(1, L / 4) * sizeof(T)), aligned(sizeof(T)), may_alias));
  // A vector from a half or a quarter; the rest is 0.
  template <class Few, size_t... I>
  static V widened(Few few, std::index_sequence<I...>) {
    return __builtin_shufflevector(few, Few{}, (I < sizeof(Few) / sizeof(T) ? I : sizeof(Few) / sizeof(T))...);
  }
  template <int Fraction>
  static V load(const T* p, int64_t count) {  // `count` values, the rest is 0
    if constexpr (Fraction == WHOLE) return load(p);
    if constexpr (Fraction == HALF) return widened(*reinterpret_cast<const Half*>(p), std::make_index_sequence<L>());
    if constexpr (Fraction == QUARTER)
      return widened(*reinterpret_cast<const Quarter*>(p), std::make_index_sequence<L>());
    V v = {};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }
  template <int Fraction>
  static void store(T* p, V v, int64_t count) {
    if (Fraction == WHOLE) return store(p, v);
    if (Fraction == HALF || Fraction == QUARTER)
      std::memcpy(p, &v, Fraction * BYTES / 4);
    else
      for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
};

// C channels padded to whole vectors, and to 8 at least.
template <class T>
int64_t padded(int64_t C) {
  constexpr int64_t multiple = std::max<int64_t>(Simd<T>::L, 8);
  return (C + multiple - 1) / multiple * multiple;
}

// Calls f(0), f(1), ..., f(N - 1) with compile-time constants: N copies of its body in a row.
template <int N, class F, int... I>
ALWAYS_INLINE void unrolled(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
ALWAYS_INLINE void unrolled(F f) {
  unrolled<N>(f, std::make_integer_sequence<int, N>());
}

// Calls f with `number` as a compile-time constant if it is one of Numbers; otherwise does nothing.
template <int64_t... Numbers, class F>
ALWAYS_INLINE void as_constant(int64_t number, F f) {
  ((number == Numbers ? f(std::integral_constant<int64_t, Numbers>()) : void()), ...);
}

// B neighbouring vectors of channels, or a single incomplete one. The last vector ends with the last channel, so it may
// overlap the one before: channels in both are computed twice, with the same result. A kernel that works in place must
// therefore load all B vectors before it stores one.
template <class T, int B, int Fraction>
struct Group {
  typedef Simd<T> S;
  static constexpr int size = B;
  int64_t first, last, channels;
  int64_t at(int i) const { return i + 1 < B ? first + i * S::L : last; }  // first channel of vector i
  typename S::V load(const T* p, int i) const { return S::template load<Fraction>(p + at(i), channels); }
  void store(T* p, typename S::V v, int i) const { S::template store<Fraction>(p + at(i), v, channels); }
};

// Number of vectors that C channels need.
template <class T>
int64_t num_vectors(int64_t C) {
  return (C + Simd<T>::L - 1) / Simd<T>::L;
}

// Number of groups that `for_groups` splits them into: as many vectors at once as leave registers for the sums.
template <class T>
int64_t num_groups(int64_t C) {
  const int64_t most = REGISTERS / 8;
  return (num_vectors<T>(C) + most - 1) / most;
}

// Splits C channels into groups of vectors and calls f with each group.
template <class T, class F>
void for_groups(int64_t C, F f) {
  constexpr int64_t L = Simd<T>::L;
  if (C == L / 2) return f(Group<T, 1, HALF>{0, 0, C});
  if (C == L / 4) return f(Group<T, 1, QUARTER>{0, 0, C});
  if (C < L) return f(Group<T, 1, SOME>{0, 0, C});
  for (int64_t groups = num_groups<T>(C), vectors = num_vectors<T>(C), from = 0, size; groups > 0; from += size) {
    size = (vectors - from) / groups--;  // the last group has two vectors at least, unless it is the only one
    const int64_t last = std::min((from + size - 1) * L, C - L);
    const auto of_size = [&](auto B) { f(Group<T, B, WHOLE>{from * L, last, C}); };
    as_constant<1, 2>(size, of_size);
    if constexpr (REGISTERS >= 32) as_constant<3, 4>(size, of_size);
  }
}

// totals[i] = the sum over `count` pixels of f(pixel, i), for each of N vectors. With few vectors, several partial sums
// run side by side, because each addition waits for the one before.
template <class T, int N, class F>
ALWAYS_INLINE void sum_over(int64_t count, typename Simd<T>::V (&totals)[N], F f) {
  constexpr int P = N < 4 ? 4 / N : 1;
  typename Simd<T>::V sum[P * N] = {};
  int64_t p = 0;
  for (; p + P <= count; p += P)
    unrolled<P * N>([&](auto i) ALWAYS { sum[i] += f(p + i / N, std::integral_constant<int, i % N>()); });
  for (; p < count; ++p) unrolled<N>([&](auto i) ALWAYS { sum[i] += f(p, i); });
  unrolled<P * N>([&](auto i) ALWAYS { totals[i % N] = i < N ? sum[i] : totals[i % N] + sum[i]; });
}

// total[c] = the sum of parts[n][c] over images n, always in the same order.
inline void sum_images(const double* parts, int64_t N, int64_t channels, double* total) {
  std::fill(total, total + channels, 0.0);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < channels; ++c) total[c] += parts[n * channels + c];
}

// ReLU or ReLU6; NaN stays NaN.
template <class T>
typename Simd<T>::V activate(typename Simd<T>::V v, int64_t activation) {
  typedef typename Simd<T>::V V;
  const V zero = {}, six = zero + T(6);
  if (activation != NONE) v = v < zero ? zero : v;  // NaN < 0 is false
  if (activation == RELU6) v = v > six ? six : v;
  return v;
}

// Hides how `p` was computed: otherwise the compiler precomputes all addresses derived from it and spills them.
template <class P>
inline void hide(P& p) {
  asm("" : "+r"(p));
}

// Keeps a vector in its register: otherwise the compiler reloads it for each product.
template <class V>
inline void keep(V& v) {
#if defined(__aarch64__)
  asm("" : "+w"(v));
#elif defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}

}  // namespace
