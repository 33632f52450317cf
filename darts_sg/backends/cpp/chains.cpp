// Chains of (activation - depthwise convolution - 1x1 convolution - BatchNorm) stages on all edges of a batch.
//
// What a stage costs in PyTorch is mostly memory traffic: each layer reads and writes a tensor that no cache holds.
// Here a stage reads its input once, takes one edge of one image at a time through all its layers, a few rows at once
// that stay in the processor's first cache, and writes one tensor, the output before BatchNorm. That BatchNorm and the
// activation behind it are applied by whoever reads the tensor. The backward pass computes again what lies between.
// A BatchNorm is y * inverse + offset; with weight and bias of its own (affine) it is y * scale + shift, and the sums
// that its backward pass needs are still those of y * inverse + offset, for the weight may be zero.
//
// A plane is (pixels, channels), channels side by side, padded to whole vectors, of 8 channels at least (`Cp`), and,
// around a convolution, with a border of zeros. Sums over images are kept for each image and added in one order, so
// that the number of threads changes no bit of any result.
//
// Vectors may alias everything, so a loop reads what does not change in it from a constant of its own, not from `s`.
//
// A pool is such a stage as well, without weights and once for each state instead of each edge; its BatchNorm may be
// missing. So is a skip connection of stride 2, a 1x1 convolution of the even pixels, (0, 0) of each 2x2, beside one of
// the odd ones, (1, 1): a product with both side by side, in which either sees its own half.
//
// Tensors: for each state the input of the first stage (N, H, W, C), with any stride between pixels, or several such
// whose channels follow each other; all others (N, E, H, W, C) dense, each node (N, H, W, C); edge e = s * T + t leads
// from state s to node t, and for a pool T is 1.
// Names follow darts_sg/networks/edges.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include <omp.h>

// REAL, the type of numbers that the functions for darts_sg/native/cpu.py have, float or double, is given when this is
// compiled. Where something has to be in registers all is inlined and unrolled, whatever the compiler thinks of it.
#define ALWAYS __attribute__((always_inline))
#define ALWAYS_INLINE inline ALWAYS

namespace {

enum Activation : int64_t { NONE = 0, RELU = 1, RELU6 = 2 };
enum Pool : int64_t { NO_POOL = 0, MAX = 1, AVERAGE = 2 };
enum Source : int64_t { EDGES = 0, NODES = 1, MIXED_NODES = 2 };  // what the gradient of a stage is given as
constexpr int64_t CHUNKS = 8;  // parts of the batch whose weight gradients are summed apart
constexpr int64_t ROWS_BYTES = 16384;  // of the rows that are computed at a time

// Size in bytes and number of the processor's vector registers. Wider vectors than these would be kept in memory.
#if defined(__AVX512F__)
constexpr int64_t BYTES = 64, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int64_t BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int64_t BYTES = 16, REGISTERS = 32;
#else
constexpr int64_t BYTES = 16, REGISTERS = 16;
#endif

enum Part : int { SOME = 0, QUARTER = 1, HALF = 2, WHOLE = 4 };  // how much of a vector there is

template <class T, int64_t Bytes = BYTES>
struct Simd {
  static constexpr int64_t L = Bytes / sizeof(T);
  typedef T V __attribute__((vector_size(L * sizeof(T)), aligned(sizeof(T)), may_alias));
  static V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }
  typedef T Half __attribute__((vector_size(std::max<int64_t>(1, L / 2) * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef T Quarter __attribute__((vector_size(std::max<int64_t>(1, L / 4) * sizeof(T)), aligned(sizeof(T)), may_alias));
  template <class Few, size_t... I>
  static V widened(Few few, std::index_sequence<I...>) {
    return __builtin_shufflevector(few, Few{}, (I < sizeof(Few) / sizeof(T) ? I : sizeof(Few) / sizeof(T))...);
  }
  template <int Part>
  static V load(const T* p, int64_t count) {  // the first `count` of a vector
    if constexpr (Part == WHOLE) return load(p);
    if constexpr (Part == HALF) return widened(*reinterpret_cast<const Half*>(p), std::make_index_sequence<L>());
    if constexpr (Part == QUARTER) return widened(*reinterpret_cast<const Quarter*>(p), std::make_index_sequence<L>());
    V v = {};
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }
  template <int Part>
  static void store(T* p, V v, int64_t count) {
    if (Part == WHOLE) return store(p, v);
    if (Part == HALF || Part == QUARTER)
      std::memcpy(p, &v, Part * BYTES / 4);
    else
      for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
};

template <class T>
int64_t padded(int64_t C) {
  constexpr int64_t multiple = std::max<int64_t>(Simd<T>::L, 8);
  return (C + multiple - 1) / multiple * multiple;
}

// Calls f with each number below N as a constant, N copies of it one after the other.
template <int N, class F, int... I>
ALWAYS_INLINE void unrolled(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
ALWAYS_INLINE void unrolled(F f) {
  unrolled<N>(f, std::make_integer_sequence<int, N>());
}

// Calls f with `number` as a constant, which is one of these or none.
template <int64_t... Numbers, class F>
ALWAYS_INLINE void as_constant(int64_t number, F f) {
  ((number == Numbers ? f(std::integral_constant<int64_t, Numbers>()) : void()), ...);
}

// Vectors of channels side by side, B of them, or one of which there is but a Part. The last vector ends with the last
// channel, so it may begin within the one before: each channel in both is computed twice, and both times the same. So
// what is overwritten has to be loaded for all B before.
template <class T, int B, int Part>
struct Group {
  typedef Simd<T> S;
  static constexpr int size = B;
  int64_t first, last, channels;
  int64_t at(int i) const { return i + 1 < B ? first + i * S::L : last; }  // the first channel of a vector
  typename S::V load(const T* p, int i) const { return S::template load<Part>(p + at(i), channels); }
  void store(T* p, typename S::V v, int i) const { S::template store<Part>(p + at(i), v, channels); }
};

template <class T>
int64_t num_vectors(int64_t C) {
  return (C + Simd<T>::L - 1) / Simd<T>::L;
}

template <class T>
int64_t num_groups(int64_t C) {
  const int64_t most = REGISTERS / 8;
  return (num_vectors<T>(C) + most - 1) / most;
}

// Calls f with each group of the vectors that C channels are.
template <class T, class F>
void for_groups(int64_t C, F f) {
  constexpr int64_t L = Simd<T>::L;
  if (C == L / 2) return f(Group<T, 1, HALF>{0, 0, C});
  if (C == L / 4) return f(Group<T, 1, QUARTER>{0, 0, C});
  if (C < L) return f(Group<T, 1, SOME>{0, 0, C});
  for (int64_t groups = num_groups<T>(C), vectors = num_vectors<T>(C), from = 0, size; groups > 0; from += size) {
    size = (vectors - from) / groups--;  // at the end there are two at least, unless there is but one vector
    const int64_t last = std::min((from + size - 1) * L, C - L);
    const auto of_size = [&](auto B) { f(Group<T, B, WHOLE>{from * L, last, C}); };
    as_constant<1, 2>(size, of_size);
    if constexpr (REGISTERS >= 32) as_constant<3, 4>(size, of_size);
  }
}

// totals[i] = the sum over `count` pixels of f(pixel, i), for each of N vectors, some pixels of few vectors apart: an
// addition waits for the one before.
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

// total[c] = the sum of parts (N, channels) over N.
inline void sum_images(const double* parts, int64_t N, int64_t channels, double* total) {
  std::fill(total, total + channels, 0.0);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < channels; ++c) total[c] += parts[n * channels + c];
}

template <class T>
struct Buffer {  // aligned memory, zeroed when it is made; throws std::bad_alloc
  std::unique_ptr<T, decltype(&std::free)> memory{nullptr, &std::free};
  T* get() const { return memory.get(); }
  explicit Buffer(int64_t count = 0) {
    if (count <= 0) return;
    // 64 bytes more, for a vector that is read where fewer values are left
    size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
    memory.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    std::memset(memory.get(), 0, bytes);
  }
};

// Memory of a thread for its planes, kept between calls. `take` gives anything, `zeros` zeros.
template <class T>
struct Scratch {
  std::vector<Buffer<T>> slots;
  std::vector<int64_t> sizes;
  size_t used = 0;
  T* take(int64_t count) {
    if (used == slots.size()) slots.emplace_back(), sizes.push_back(0);
    const size_t i = used++;
    if (sizes[i] < count) {
      sizes[i] = 0;
      slots[i] = Buffer<T>(count);
      sizes[i] = count;
    }
    return slots[i].get();
  }
  T* zeros(int64_t count) {
    T* found = take(count);
    if (count > 0) std::memset(found, 0, static_cast<size_t>(count) * sizeof(T));
    return found;
  }
  static Scratch& of_thread() {
    thread_local Scratch scratch;
    scratch.used = 0;
    return scratch;
  }
};

// Deals the units [0, count) of a parallel region out: to each thread its share in order, and to those that are done the
// last ones that are left of another's. What is asked for ahead is mostly the next unit then, and no thread waits long.
class Shares {
  struct alignas(64) Share {
    std::atomic<uint64_t> left;  // from its first unit, in the lower half, to the last one, exclusive
  };
  std::vector<Share> shares_;

  // The first unit of a share, or the last one; -1 if none is left.
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
  Shares(int64_t count, int64_t threads) : shares_(threads) {
    for (int64_t i = 0; i < threads; ++i) {
      const uint64_t from = count * i / threads, to = count * (i + 1) / threads;
      shares_[i].left.store(to << 32 | from, std::memory_order_relaxed);
    }
  }
  // Calls f with one unit after the other, in each thread of the region.
  template <class F>
  void each(F f) {
    const int64_t threads = shares_.size(), own = omp_get_thread_num();
    for (int64_t i = 0; i < threads; ++i)
      for (int64_t unit; (unit = take(shares_[(own + i) % threads], i == 0)) >= 0;) f(unit);
  }
};

// A parallel region that calls f with each unit.
template <class F>
void for_units(int64_t count, int64_t threads, F f) {
  Shares shares(count, threads);
#pragma omp parallel num_threads(static_cast<int>(threads))
  shares.each(f);
}

template <class T>
typename Simd<T>::V activate(typename Simd<T>::V v, int64_t activation) {
  typedef typename Simd<T>::V V;
  const V zero = {}, six = zero + T(6);
  if (activation != NONE) v = v < zero ? zero : v;  // written so that NaN stays NaN
  if (activation == RELU6) v = v > six ? six : v;
  return v;
}

// Asks for what the next edge needs, a few lines at a time, while this one is computed.
class Ahead {
  static constexpr int RANGES = 8;
  const char *at_[RANGES] = {}, *end_[RANGES] = {};
  int ranges_ = 0, at_once_ = 0;
  int64_t lines_ = 0;

 public:
  // Forgets what has been asked for.
  void restart() { ranges_ = at_once_ = lines_ = 0; }
  // Adds a range of memory; more than eight are not asked for.
  template <class T>
  void add(const T* start, int64_t count) {
    if (!start || ranges_ == RANGES) return;
    at_[ranges_] = reinterpret_cast<const char*>(start);
    end_[ranges_++] = reinterpret_cast<const char*>(start + count);
    lines_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64;
  }
  // How often `some` will be called until all of it is needed.
  void within(int64_t calls) {
    at_once_ = static_cast<int>((lines_ + calls - 1) / std::max<int64_t>(1, calls));
  }
  void some() {
    int left = at_once_;
    for (int i = 0; i < ranges_; ++i)
      for (; left > 0 && at_[i] < end_[i]; at_[i] += 64, --left) __builtin_prefetch(at_[i], 0, 2);
  }
};

// Keeps the compiler from computing all that it adds to `p` beforehand: so many addresses would lie in memory.
template <class P>
inline void hide(P& p) {
  asm("" : "+r"(p));
}

// Keeps a vector in its register: the compiler would load it again for each product.
template <class V>
inline void keep(V& v) {
#if defined(__aarch64__)
  asm("" : "+w"(v));
#elif defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}

// Calls f with the stride and the dilation of a depthwise convolution as constants, or with 0 and 0 where they are no
// usual ones.
template <class F>
void with_steps(int64_t stride, int64_t dilation, F f) {
  typedef std::integral_constant<int, 1> One;
  typedef std::integral_constant<int, 2> Two;
  if (stride == 1 && dilation == 1) return f(One(), One());
  if (stride == 1 && dilation == 2) return f(One(), Two());
  if (stride == 2 && dilation == 1) return f(Two(), One());
  if (stride == 2 && dilation == 2) return f(Two(), Two());
  f(std::integral_constant<int, 0>(), std::integral_constant<int, 0>());
}

// Calls f(q, j, x) for each of P output pixels side by side, q, and each of K taps of a row, j, with x, what the tap
// sees there: one vector of channels. A pixel is loaded once for all that see it, taps of a single output pixel `tap`
// apart.
template <class T, int K, int P, int stride, int dilation, class F>
ALWAYS_INLINE void for_taps(const T* p, int64_t Cp, int64_t tap, F f) {
  constexpr int columns = P == 1 ? K : (P - 1) * stride + (K - 1) * dilation + 1;
  unrolled<columns>([&](auto c) ALWAYS {
    hide(p);
    typename Simd<T>::V x = Simd<T>::load(p);
    keep(x);
    p += P == 1 ? tap : Cp;
    if constexpr (P == 1)
      f(std::integral_constant<int, 0>(), c, x);
    else
      unrolled<K>([&](auto j) ALWAYS {
        constexpr int first = c - j * dilation;
        if constexpr (first >= 0 && first % stride == 0 && first / stride < P)
          f(std::integral_constant<int, first / stride>(), j, x);
      });
  });
}

// out[q] = sum over the taps of in * weight, for P output pixels in a row and one vector of channels.
template <class T, int K, int P, int stride, int dilation>
inline void depthwise_pixels(const T* in, int64_t in_row, int64_t tap, const T* weight, int64_t Cp, T* out) {
  typedef Simd<T> S;
  typedef typename S::V V;
  V sum[P] = {};
  for (int i = 0; i < K; ++i, in += in_row) {
    V w[K];
    unrolled<K>([&](auto j) ALWAYS {
      w[j] = S::load(weight);
      keep(w[j]);
      weight += Cp;
    });
    for_taps<T, K, P, stride, dilation>(in, Cp, tap, [&](auto q, auto j, const V& x) ALWAYS { sum[q] += x * w[j]; });
  }
  unrolled<P>([&](auto q) ALWAYS { S::store(out + q * Cp, sum[q]); });
}

// A depthwise convolution of a bordered plane: in (rows of in_row values), out (Ho, Wo, Cp), weight (K * K, Cp).
template <class T, int K>
void depthwise(const T* in, int64_t in_row, int64_t stride, int64_t dilation, const T* weight, int64_t Ho, int64_t Wo,
               int64_t Cp, T* out) {
  const int64_t step = stride * Cp, tap = dilation * Cp, row = dilation * in_row;
  with_steps(stride, dilation, [&](auto s, auto d) {
    const auto pixels = [&](auto P, const T* from, const T* w, T* to) {
      depthwise_pixels<T, K, P, s, d>(from, row, tap, w, Cp, to);
    };
    for (int64_t b = 0; b < Cp; b += Simd<T>::L)
      for (int64_t h = 0; h < Ho; ++h) {
        const T* p = in + h * stride * in_row + b;
        T* to = out + h * Wo * Cp + b;
        int64_t w = 0;
        if constexpr (s > 0) {
          for (; w + 8 <= Wo; w += 8) pixels(std::integral_constant<int, 8>(), p + w * step, weight + b, to + w * Cp);
          for (; w + 4 <= Wo; w += 4) pixels(std::integral_constant<int, 4>(), p + w * step, weight + b, to + w * Cp);
        }
        for (; w < Wo; ++w) pixels(std::integral_constant<int, 1>(), p + w * step, weight + b, to + w * Cp);
      }
  });
}

// The transpose of `depthwise` at any stride: adds to the bordered plane `in` what `out` (Ho, Wo, Cp) gives it.
template <class T, int K>
void depthwise_scatter(T* in, int64_t in_row, int64_t stride, int64_t dilation, const T* weight, int64_t Ho, int64_t Wo,
                       int64_t Cp, const T* out, int64_t out_row) {
  typedef Simd<T> S;
  for (int64_t h = 0; h < Ho; ++h)
    for (int64_t w = 0; w < Wo; ++w)
      for (int64_t b = 0; b < Cp; b += S::L) {
        const typename S::V g = S::load(out + h * out_row + w * Cp + b);
        T* corner = in + h * stride * in_row + w * stride * Cp + b;
        for (int i = 0; i < K; ++i)
          for (int j = 0; j < K; ++j) {
            T* p = corner + i * dilation * in_row + j * dilation * Cp;
            S::store(p, S::load(p) + g * S::load(weight + (i * K + j) * Cp + b));
          }
      }
}

// Adds to sum the products of P output pixels side by side and what R rows of taps see: one vector of channels.
template <class T, int K, int R, int P, int stride, int dilation, int PARTS, class V>
ALWAYS_INLINE void depthwise_products(const T* in, int64_t in_row, int64_t tap, const T* out, int64_t Cp,
                                      V (&sum)[PARTS][R * K]) {
  V g[P];
  unrolled<P>([&](auto q) ALWAYS {
    g[q] = Simd<T>::load(out + q * Cp);
    keep(g[q]);
  });
  unrolled<R>([&](auto i) ALWAYS {
    for_taps<T, K, P, stride, dilation>(in, Cp, tap, [&](auto q, auto j, const V& x) ALWAYS {
      sum[q % PARTS][i * K + j] += x * g[q];
    });
    in += in_row;
  });
}

// Adds to gradient (K * K, Cp) the sum over the pixels of in * out, R rows of taps at a time.
template <class T, int K, int R>
void depthwise_weight(const T* in, int64_t in_row, int64_t stride, int64_t dilation, const T* out, int64_t out_row,
                      int64_t Ho, int64_t Wo, int64_t Cp, T* gradient) {
  typedef Simd<T> S;
  typedef typename S::V V;
  static_assert(K % R == 0, "whole groups of rows");
  constexpr int PARTS = R * K < 6 ? 2 : 1;  // of a sum that are added up apart: an addition waits for the one before
  const int64_t step = stride * Cp, tap = dilation * Cp, row = dilation * in_row;
  with_steps(stride, dilation, [&](auto s, auto d) {
    for (int64_t b = 0; b < Cp; b += S::L)
      for (int first = 0; first < K; first += R) {
        V sum[PARTS][R * K] = {};
        for (int64_t h = 0; h < Ho; ++h) {
          const T *p = in + h * stride * in_row + first * row + b, *g = out + h * out_row + b;
          int64_t w = 0;
          if constexpr (s > 0)
            for (; w + 4 <= Wo; w += 4, p += 4 * step, g += 4 * Cp)
              depthwise_products<T, K, R, 4, s, d, PARTS>(p, row, tap, g, Cp, sum);
          for (; w < Wo; ++w, p += step, g += Cp) depthwise_products<T, K, R, 1, s, d, PARTS>(p, row, tap, g, Cp, sum);
        }
        unrolled<R * K>([&](auto i) ALWAYS {
          T* to = gradient + (first * K + i) * Cp + b;
          S::store(to, S::load(to) + (PARTS == 1 ? sum[0][i] : sum[0][i] + sum[PARTS - 1][i]));
        });
      }
  });
}

// What is computed of the last vector of C channels: half of a wide one takes half the time.
template <class T, class F>
void with_last(int64_t C, F f) {
  constexpr int64_t L = Simd<T>::L;
  const int64_t lanes = (C - 1) % L + 1;
  if constexpr (BYTES == 64) {
    if (lanes <= L / 4) return f(std::integral_constant<int, QUARTER>());
    if (lanes <= L / 2) return f(std::integral_constant<int, HALF>());
  }
  f(std::integral_constant<int, WHOLE>());
}

// B vectors side by side, the last of which may be a Part.
template <class T, int B, int Part>
struct Row {
  typedef Simd<T> S;
  typedef Simd<T, BYTES * Part / WHOLE> Last;
  static constexpr int64_t at = (B - 1) * S::L;  // the last one
  typename S::V whole[std::max(B - 1, 1)] = {};
  typename Last::V last = {};
  ALWAYS_INLINE void load(const T* p) {
    unrolled<B - 1>([&](auto b) ALWAYS {
      whole[b] = S::load(p + b * S::L);
      keep(whole[b]);
    });
    last = Last::load(p + at);
    keep(last);
  }
  ALWAYS_INLINE void add(T x, const Row& row) {
    unrolled<B - 1>([&](auto b) ALWAYS { whole[b] += x * row.whole[b]; });
    last += x * row.last;
  }
  ALWAYS_INLINE void store(T* p) const {
    unrolled<B - 1>([&](auto b) ALWAYS { S::store(p + b * S::L, whole[b]); });
    Last::store(p + at, last);
  }
  ALWAYS_INLINE void add_to(T* p) const {
    unrolled<B - 1>([&](auto b) ALWAYS { S::store(p + b * S::L, S::load(p + b * S::L) + whole[b]); });
    Last::store(p + at, Last::load(p + at) + last);
  }
};

template <class T, int P, int B, int Part>
inline void pointwise_pixels(const T* in, int64_t in_Cp, int64_t C, const T* weight, int64_t Cp, T* out) {
  Row<T, B, Part> sum[P], w;
  for (int64_t c = 0; c < C; ++c) {
    w.load(weight + c * Cp);
    unrolled<P>([&](auto q) ALWAYS { sum[q].add(in[q * in_Cp + c], w); });
  }
  unrolled<P>([&](auto q) ALWAYS { sum[q].store(out + q * Cp); });
}

// `pointwise` for B vectors of channels.
template <class T, int B, int Part>
inline void pointwise_vectors(const T* in, int64_t in_Cp, int64_t C, const T* weight, int64_t Cp, int64_t pixels,
                              T* out) {
  constexpr int P = std::min<int>(8, (REGISTERS - 1 - B) / B);  // beside the sums: B weights and one value
  int64_t p = 0;
  for (; p + P <= pixels; p += P) pointwise_pixels<T, P, B, Part>(in + p * in_Cp, in_Cp, C, weight, Cp, out + p * Cp);
  for (; p + 2 <= pixels; p += 2) pointwise_pixels<T, 2, B, Part>(in + p * in_Cp, in_Cp, C, weight, Cp, out + p * Cp);
  for (; p < pixels; ++p) pointwise_pixels<T, 1, B, Part>(in + p * in_Cp, in_Cp, C, weight, Cp, out + p * Cp);
}

// Calls f with the first channel, the number (at most three) and the Part of vectors side by side, until those of C
// channels are done.
template <class T, class F>
void for_rows(int64_t C, F f) {
  constexpr int64_t L = Simd<T>::L;
  const auto of_size = [&](int64_t b, int64_t size, auto part) {
    as_constant<3, 2, 1>(size, [&](auto B) { f(b, B, part); });
  };
  for (int64_t b = 0, left = num_vectors<T>(C), B; left > 0; b += B * L, left -= B) {
    B = left == 4 ? 2 : std::min<int64_t>(left, 3);
    if (B < left)
      of_size(b, B, std::integral_constant<int, WHOLE>());
    else
      with_last<T>(C, [&](auto part) { of_size(b, B, part); });
  }
}

// A matrix product: in (pixels, in_Cp), its first C columns times weight (C, Cp), its first Co columns, to out
// (pixels, Cp).
template <class T>
void pointwise(const T* in, int64_t in_Cp, int64_t C, const T* weight, int64_t Co, int64_t Cp, int64_t pixels, T* out) {
  for_rows<T>(Co, [&](int64_t b, auto B, auto part) {
    pointwise_vectors<T, B, part>(in, in_Cp, C, weight + b, Cp, pixels, out + b);
  });
}

// `pointwise_weight` for B vectors of channels, Q rows of the gradient at a time.
template <class T, int Q, int B, int Part>
inline void pointwise_weight_vectors(const T* out, int64_t out_Cp, int64_t C, const T* in, int64_t Cp, int64_t pixels,
                                     T* gradient) {
  for (int64_t c = 0; c < C; c += Q) {
    Row<T, B, Part> sum[Q], v;
    const T *o = out + c, *i = in;
    for (int64_t p = 0; p < pixels; ++p, o += out_Cp, i += Cp) {
      v.load(i);
      unrolled<Q>([&](auto q) ALWAYS { sum[q].add(o[q], v); });
    }
    unrolled<Q>([&](auto q) ALWAYS {
      if (c + q < C) sum[q].add_to(gradient + (c + q) * Cp);
    });
  }
}

// Adds to gradient (C, Cp) the product of out (pixels, out_Cp), its first C columns, transposed, and in (pixels, Cp),
// its first Ci columns.
template <class T>
void pointwise_weight(const T* out, int64_t out_Cp, int64_t C, const T* in, int64_t Ci, int64_t Cp, int64_t pixels,
                      T* gradient) {
  for_rows<T>(Ci, [&](int64_t b, auto B, auto part) {
    constexpr int Q = REGISTERS >= 32 || B == 1 ? 8 : 4;  // out_Cp is a multiple of it
    const int64_t rest = C % Q, few = Q > 4 && rest <= 4 ? rest : 0;
    pointwise_weight_vectors<T, Q, B, part>(out, out_Cp, C - few, in + b, Cp, pixels, gradient + b);
    pointwise_weight_vectors<T, 4, B, part>(out + C - few, out_Cp, few, in + b, Cp, pixels,
                                            gradient + (C - few) * Cp + b);
  });
}

// 3x3 pools of a plane with a border of one pixel: -infinity for the maximum, which is the first one in its window.
template <class T>
inline void first_maximum(const T* corner, int64_t row, int64_t Cp, typename Simd<T>::V& best,
                          typename Simd<T>::V& tap) {
  typedef typename Simd<T>::V V;
  best = Simd<T>::load(corner);
  tap = V{};
  for (int i = 1; i < 9; ++i) {
    const V v = Simd<T>::load(corner + i / 3 * row + i % 3 * Cp), here = V{} + static_cast<T>(i);
    const auto larger = (v > best) | (v != v);  // as in PyTorch NaN wins
    best = larger ? v : best;
    tap = larger ? here : tap;
  }
}

// How many pixels of the window at h are no border.
inline int64_t inside(int64_t h, int64_t stride, int64_t H) {
  return std::min(h * stride + 2, H) - std::max<int64_t>(h * stride - 1, 0);
}

// Output rows [from, to) of a pool, to `out`; `in` is the row that the first window begins with.
template <class T>
void pool(const T* in, int64_t row, int64_t stride, int64_t kind, int64_t from, int64_t to, int64_t H, int64_t W,
          int64_t Wo, int64_t Cp, T* out) {
  typedef typename Simd<T>::V V;
  for (int64_t h = from; h < to; ++h)
    for (int64_t w = 0; w < Wo; ++w)
      for (int64_t b = 0; b < Cp; b += Simd<T>::L) {
        const T* corner = in + (h - from) * stride * row + w * stride * Cp + b;
        V v = {}, tap;
        if (kind == MAX) {
          first_maximum<T>(corner, row, Cp, v, tap);
        } else {
          for (int i = 0; i < 9; ++i) v += Simd<T>::load(corner + i / 3 * row + i % 3 * Cp);
          v /= static_cast<T>(inside(h, stride, H) * inside(w, stride, W));
        }
        Simd<T>::store(out + ((h - from) * Wo + w) * Cp + b, v);
      }
}

// Which pixel of each window of a row of windows at stride 1 is its first maximum, for `rows` rows of W windows.
template <class T>
void find_maxima(const T* in, int64_t row, int64_t rows, int64_t W, int64_t Cp, T* maxima, int64_t maxima_row) {
  typename Simd<T>::V best, tap;
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t i = 0; i < W * Cp; i += Simd<T>::L) {
      first_maximum<T>(in + h * row + i, row, Cp, best, tap);
      Simd<T>::store(maxima + h * maxima_row + i, tap);
    }
}

// The gradient of what a maximum pool at stride 1 is given, for `rows` rows of W pixels, from that of its output and
// its maxima; both have a border of one pixel, and begin one row higher.
template <class T>
void pool_gather(const T* gradient, const T* maxima, int64_t row, int64_t rows, int64_t W, int64_t Cp, T* out) {
  typedef typename Simd<T>::V V;
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t i = 0; i < W * Cp; i += Simd<T>::L) {
      V sum = {};
      unrolled<9>([&](auto j) ALWAYS {  // the window in row j / 3 has the pixel at its place 8 - j
        const int64_t at = (h + j / 3) * row + j % 3 * Cp + i;
        const V g = Simd<T>::load(gradient + at), zero = {};
        sum += Simd<T>::load(maxima + at) == zero + static_cast<T>(8 - j) ? g : zero;
      });
      Simd<T>::store(out + h * W * Cp + i, sum);
    }
}

// Adds to the bordered plane `to` what the gradient of `rows` output rows of a pool gives it; an average's gradient is
// divided by the size of its window already. `in` and `to` begin with the first window's first row.
template <class T>
void pool_scatter(const T* in, int64_t row, int64_t stride, int64_t kind, int64_t rows, int64_t Wo, int64_t Cp,
                  const T* gradient, T* to) {
  typedef typename Simd<T>::V V;
  for (int64_t h = 0; h < rows; ++h)
    for (int64_t w = 0; w < Wo; ++w)
      for (int64_t b = 0; b < Cp; b += Simd<T>::L) {
        const int64_t corner = h * stride * row + w * stride * Cp + b;
        const V g = Simd<T>::load(gradient + (h * Wo + w) * Cp + b), zero = {};
        V best, tap = {};
        if (kind == MAX) first_maximum<T>(in + corner, row, Cp, best, tap);
        for (int i = 0; i < 9; ++i) {
          T* p = to + corner + i / 3 * row + i % 3 * Cp;
          const V here = zero + static_cast<T>(i);
          Simd<T>::store(p, Simd<T>::load(p) + (kind == MAX ? (tap == here ? g : zero) : g));
        }
      }
}

}  // namespace

extern "C" {

// One stage, as darts_sg/native/cpu.py fills it in: 64 bits each. Pointers that are not needed are null.
struct Stage {
  int64_t N, S, T, H, W, Ho, Wo, Ci, Co, k, stride, dilation, pool, activation, first, norm, training, threads;
  int64_t in_n, in_pixel;                // strides of the states
  int64_t parts;                         // of each state, whose channels follow each other
  const void* const* states;             // S * parts, the first stage's input
  const void *in, *in_scale, *in_shift;  // that of the others; its BatchNorm as y * scale + shift, each (E * Ci)
  const void *in_inverse, *in_offset;    // the same before weight and bias
  const void *depthwise, *pointwise;     // (E * Ci, 1, k, k), (E * Co, Ci, 1, 1)
  const void* odd;                       // of the odd pixels, (E * (Co - Co / 2), Ci, 1, 1); pointwise: of the even ones
  void* out;                             // (N, E, Ho, Wo, Co) before BatchNorm
  // of this stage's BatchNorm, each (E * Co); without weight and bias inverse is scale, and offset is shift
  void *scale, *shift, *inverse, *offset, *running_mean, *running_var;
  const void *weight, *bias;
  double momentum, eps;
  const void* gradient;              // of the normalised output (N, E, Ho, Wo, Co),
  const void* const* given;          // or of the nodes, each (N, Ho, Wo, Co)
  int64_t source, nodes;             // how many nodes there are, for MIXED_NODES
  const void* gamma;                 // NODES: of each edge, MIXED_NODES: of each of S * nodes
  int64_t gamma_edge, gamma_image;   // strides of gamma; between images 0 unless each has its own
  const double *sum, *sum_y;         // over images and pixels of gradient and of gradient * (y * inverse + offset)
  void* in_gradient;                 // (N, E, H, W, Ci), of the normalised input,
  void* const* to_states;            // or of each part of the states, (N, H, W, Ci / parts), and what it is added to:
  const void* const* onto_states;    // that again, something else, or null
  double *in_sum, *in_sum_y;         // (E * Ci), unless first
  void *depthwise_gradient, *pointwise_gradient, *odd_gradient, *weight_gradient, *bias_gradient;
};

}  // extern "C"

namespace {

// out (pixels, C) = the sum over T_ nodes of gamma * node, each (pixels, C) from `at` on, where gamma's are `gamma_step`
// apart, and of `onto`, unless that is null.
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

// Calls f with the size of a square kernel as a constant.
template <class F>
void with_size(int64_t k, F f) {
  as_constant<3, 5, 7>(k, f);
}

// Calls f with an activation as a constant.
template <class F>
void with_activation(int64_t activation, F f) {
  as_constant<NONE, RELU, RELU6>(activation, f);
}

template <class T>
struct Worker {  // a stage with its weights packed: what all threads share
  typedef Simd<T> Sd;
  typedef typename Sd::V V;
  const Stage& s;
  const int64_t E, Cip, Cop, kk, pad, Hp, Wp, pixels;
  const int64_t Cm, Cmp;  // channels that the 1x1 convolution sees, and those of its plane
  const int64_t R;  // output rows that are computed at a time
  Buffer<T> taps, flipped, matrix, transposed, in_scale, in_shift;

  explicit Worker(const Stage& stage, bool backward)
      : s(stage), E(s.S * s.T), Cip(padded<T>(s.Ci)), Cop(padded<T>(s.Co)), kk(s.k * s.k),
        pad(s.k ? s.dilation * (s.k / 2) : 0), Hp(s.odd ? 2 * s.Ho : s.H + 2 * pad),
        Wp(s.odd ? 2 * s.Wo : s.W + 2 * pad), pixels(s.Ho * s.Wo), Cm(s.odd ? 2 * Cip : s.Ci),
        Cmp(s.odd ? 2 * Cip : Cip),
        R(std::clamp<int64_t>(ROWS_BYTES / (s.Wo * std::max(Cip, Cop) * sizeof(T)), 1, s.Ho)),
        taps(s.depthwise ? E * kk * Cip : 0), flipped(backward && s.k && s.pool != MAX ? E * kk * Cip : 0),
        matrix(s.pointwise ? E * Cm * Cop : 0), transposed(backward && s.pointwise ? E * s.Co * Cmp : 0),
        in_scale(E * Cip), in_shift(E * Cip) {
    if (s.pool == AVERAGE && backward) std::fill(flipped.get(), flipped.get() + E * kk * Cip, T(1));
    const T* w = static_cast<const T*>(s.depthwise);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(s.threads))
    for (int64_t e = 0; e < E; ++e) {
      for (int64_t c = 0; c < s.Ci; ++c) {
        for (int64_t i = 0; w && i < kk; ++i) {
          const T value = w[(e * s.Ci + c) * kk + i];
          taps.get()[(e * kk + i) * Cip + c] = value;
          if (backward) flipped.get()[(e * kk + kk - 1 - i) * Cip + c] = value;
        }
        if (s.in_scale) {
          in_scale.get()[e * Cip + c] = static_cast<const T*>(s.in_scale)[e * s.Ci + c];
          in_shift.get()[e * Cip + c] = static_cast<const T*>(s.in_shift)[e * s.Ci + c];
        }
      }
      for (int64_t o = 0; s.pointwise && o < s.Co; ++o) {
        const T* m = weight_row<const T>(s.pointwise, s.odd, e, o);
        for (int64_t c = 0; c < s.Ci; ++c) {
          matrix.get()[(e * Cm + c + half(o)) * Cop + o] = m[c];
          if (backward) transposed.get()[(e * s.Co + o) * Cmp + c + half(o)] = m[c];
        }
      }
    }
  }

  // Where output o of a 1x1 convolution begins in what it sees, and what weight it has, Ci values, in either of two tensors.
  int64_t half(int64_t o) const { return s.odd && o >= s.Co / 2 ? Cip : 0; }
  template <class W, class P>
  W* weight_row(P* even, P* odd, int64_t e, int64_t o) const {
    const int64_t first = odd ? s.Co / 2 : s.Co;
    if (o < first) return static_cast<W*>(even) + (e * first + o) * s.Ci;
    return static_cast<W*>(odd) + (e * (s.Co - first) + o - first) * s.Ci;
  }

  // Where an edge's input is, or, if it is a state in several parts, one of them.
  const T* input(int64_t n, int64_t e, int64_t part = 0) const {
    if (s.first) return static_cast<const T*>(s.states[e / s.T * s.parts + part]) + n * s.in_n;
    return static_cast<const T*>(s.in) + (n * E + e) * s.H * s.W * s.Ci;
  }
  int64_t in_pixel() const { return s.first ? s.in_pixel : s.Ci; }
  int64_t parts() const { return s.first ? s.parts : 1; }
  // Groups of vectors in a row of the input.
  int64_t load_groups() const { return parts() * num_groups<T>(s.Ci / parts()); }
  void ask_for_input(int64_t n, int64_t e, Ahead& ahead) const {
    if (s.first && E > 1) return;  // which another edge has brought to the cache
    for (int64_t part = 0; part < parts(); ++part) ahead.add(input(n, e, part), s.H * s.W * in_pixel());
  }
  const T* gamma(int64_t n, int64_t e) const {
    return static_cast<const T*>(s.gamma) + e * s.gamma_edge + n * s.gamma_image;
  }

  // The plane of a thread, with its border as it has to be.
  T* bordered(Scratch<T>& scratch) const {
    T* plane = scratch.zeros(Hp * Wp * Cip);
    if (s.pool == MAX) std::fill(plane, plane + Hp * Wp * Cip, -std::numeric_limits<T>::infinity());
    return plane;
  }

  // How many rows of the input must have been loaded before `last`, exclusive, output rows can be computed.
  int64_t needed(int64_t last) const {
    return last == s.Ho ? s.H : std::min(s.H, (last - 1) * s.stride + pad + (s.odd ? 2 : 1));
  }

  // Rows [from, to) of the input of edge e of image n, normalised and activated, into a plane with a border.
  void load(int64_t n, int64_t e, int64_t from, int64_t to, T* plane, Ahead& ahead) const {
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
            ahead.some();
            for (int64_t w = 0; w < W; ++w)
              unrolled<B>([&](auto i) ALWAYS {
                V v = group.load(source + w * step, i);
                if (scaled) v = v * scale[i] + shift[i];
                v = activate<T>(v, activation);
                if (parts == 1)
                  Sd::store(target + w * apart + group.at(i), v);
                else  // beside what another part has written
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

  // Calls f for each output pixel of rows [from, to): its number, and where its even and its odd pixel are in a plane.
  template <class F>
  void for_pairs(int64_t from, int64_t to, F f) const {
    for (int64_t h = from; h < to; ++h)
      for (int64_t w = 0; w < s.Wo; ++w)
        f((h - from) * s.Wo + w, (2 * h * Wp + 2 * w) * Cip, ((2 * h + 1) * Wp + 2 * w + 1) * Cip);
  }

  // Whether the 1x1 convolution sees something else than the plane.
  bool has_middle() const { return s.k || s.odd; }

  // Rows [from, to) of the depthwise convolution or pool of a plane, or of its pairs of pixels, to `out`.
  void convolve(const T* plane, int64_t e, int64_t from, int64_t to, T* out) const {
    const int64_t row = Wp * Cip, bytes = Cip * sizeof(T);
    const T* in = plane + from * s.stride * row;
    if (s.odd)
      return for_pairs(from, to, [&](int64_t p, int64_t even, int64_t odd) {
        std::memcpy(out + p * Cmp, plane + even, bytes);
        std::memcpy(out + p * Cmp + Cip, plane + odd, bytes);
      });
    if (s.pool) return pool<T>(in, row, s.stride, s.pool, from, to, s.H, s.W, s.Wo, Cip, out);
    with_size(s.k, [&](auto k) {
      depthwise<T, k>(in, row, s.stride, s.dilation, taps.get() + e * kk * Cip, to - from, s.Wo, Cip, out);
    });
  }

  // The gradient before this stage's BatchNorm, gradient * a + output * b + d, of output rows [from, to) of edge e:
  // rows of Cop values a pixel, `row` pixels apart. `mixed` is where the nodes' gradients are summed up.
  void normalise(int64_t n, int64_t t, int64_t e, int64_t from, int64_t to, const T* a, const T* b, const T* d,
                 T* mixed, T* target, int64_t row, Ahead& ahead) const {
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
        const int64_t rows = average ? inside(from + h, stride, s.H) : 1;
        const T *given = g + h * Wo * C, *output = y + h * Wo * C;
        T* result = target + h * row * Cop;
        ahead.some();
        for (int64_t w = 0; w < Wo; ++w)
          unrolled<B>([&](auto i) ALWAYS {
            V v = by_output[i] * group.load(output + w * C, i) + constant[i];
            v = by_gradient[i] * group.load(given + w * C, i) + v;
            if (average) v /= static_cast<T>(rows * inside(w, stride, W));
            Sd::store(result + w * apart + group.at(i), v);
          });
      });
  }

  // The gradient of the activated input, rows [from, to) `row` values apart, through the activation to the input.
  // own_sums: of it and of its product with the normalised input (before weight and bias), each Cip.
  void pass_on(int64_t n, int64_t t, int64_t e, int64_t from, int64_t to, const T* by_input, int64_t row,
               const T* plane, T* own_sums, Ahead& ahead) const {
    if (s.first) {
      const int64_t C = s.Ci / s.parts;
      for (int64_t i = 0; i < s.parts; ++i) {
        const int64_t number = e / s.T * s.parts + i, image = n * s.H * s.W * C;
        T* target = static_cast<T*>(s.to_states[number]) + image;
        const T* onto = static_cast<const T*>(s.onto_states[number]);
        pass_on_channels<true>(n, e, from, to, by_input, row, plane, i * C, C, target,
                               t > 0 ? target : onto ? onto + image : nullptr, own_sums, ahead);
      }
    } else {
      T* target = static_cast<T*>(s.in_gradient) + (n * E + e) * s.H * s.W * s.Ci;
      pass_on_channels<false>(n, e, from, to, by_input, row, plane, 0, s.Ci, target, nullptr, own_sums, ahead);
    }
  }

  // `pass_on` for C channels from `begin` on: what is added to `onto`, unless that is null, is written to `target`.
  template <bool first>
  void pass_on_channels(int64_t n, int64_t e, int64_t from, int64_t to, const T* by_input, int64_t row, const T* plane,
                        int64_t begin, int64_t C, T* target, const T* onto, T* own_sums, Ahead& ahead) const {
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
          const T *gradients = by_input + (scattered() ? h : h - from) * row + begin;
          const T *seen = plane + ((h + pad) * Wp + pad) * Cip + begin;
          const T *y = input(n, e) + h * W * in_step;
          T* p = target + h * W * step;
          const T* before = add ? onto + h * W * step : p;
          ahead.some();
          for (int64_t w = 0; w < W; ++w) {
            V v[B];
            unrolled<B>([&](auto i) ALWAYS {
              v[i] = Sd::load(gradients + w * apart + group.at(i));
              const V active = Sd::load(seen + w * apart + group.at(i));
              if (activation != NONE) v[i] = active > zero ? v[i] : zero;
              if (activation == RELU6) v[i] = active < six ? v[i] : zero;
              if (!first) {
                sum[i] += v[i];
                // without weight and bias: where the gradient is not zero the activation has changed nothing
                sum_y[i] += v[i] * (affine ? group.load(y + w * in_step, i) * inverse[i] + offset[i] : active);
              }
              if (add) v[i] += group.load(before + w * step, i);
            });
            unrolled<B>([&](auto i) ALWAYS { group.store(p + w * step, v[i], i); });
          }
          if (first) return;
          unrolled<B>([&](auto i) ALWAYS {
            sum[i] += Sd::load(own_sums + group.at(i));
            sum_y[i] += Sd::load(own_sums + Cip + group.at(i));
          });
          unrolled<B>([&](auto i) ALWAYS {
            Sd::store(own_sums + group.at(i), sum[i]);
            Sd::store(own_sums + Cip + group.at(i), sum_y[i]);
          });
        });
    });
  }
  bool scattered() const { return s.odd || (s.k && s.stride != 1); }

  void forward() const;
  void backward() const;
};

// Mean and variance over all images from those of each image (Chan, Golub, LeVeque 1983), and the running ones.
template <class T>
void finish_statistics(const Stage& s, int64_t channels, const double* mean, const double* squares) {
  T *scale = static_cast<T*>(s.scale), *shift = static_cast<T*>(s.shift);
  if (!s.norm) {
    std::fill(scale, scale + channels, T(1));
    std::fill(shift, shift + channels, T(0));
    return;
  }
  T *inverse = static_cast<T*>(s.inverse), *offset = static_cast<T*>(s.offset);
  const T *weight = static_cast<const T*>(s.weight), *bias = static_cast<const T*>(s.bias);
  T *running_mean = static_cast<T*>(s.running_mean), *running_var = static_cast<T*>(s.running_var);
  const double pixels = static_cast<double>(s.Ho * s.Wo), count = pixels * static_cast<double>(s.N);
  std::vector<double> means(channels), variances(channels);
  if (s.training) {
    sum_images(mean, s.N, channels, means.data());
    sum_images(squares, s.N, channels, variances.data());
    for (double& m : means) m /= static_cast<double>(s.N);
    for (int64_t n = 0; n < s.N; ++n)
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
    inverse[c] = static_cast<T>(by);
    offset[c] = static_cast<T>(-m * by);
    if (weight) {
      scale[c] = static_cast<T>(weight[c] * by);
      shift[c] = static_cast<T>(bias[c] - m * by * weight[c]);
    }
  }
}

template <class T>
void Worker<T>::forward() const {
  const int64_t channels = E * s.Co;
  Buffer<double> mean(s.N * channels), squares(s.N * channels);
  std::atomic<bool> exhausted{false};  // an exception must not leave a parallel region
  Shares shares(s.N * E, s.threads);
#pragma omp parallel num_threads(static_cast<int>(s.threads))
  {
    Scratch<T>& scratch = Scratch<T>::of_thread();
    T *plane = nullptr, *middle = nullptr, *padded_output = nullptr, *sums = nullptr;
    try {
      plane = bordered(scratch);
      middle = scratch.take(has_middle() && s.pointwise ? R * s.Wo * Cmp : 0);
      padded_output = scratch.take(s.Co < Cop ? R * s.Wo * Cop : 0);
      sums = scratch.take(3 * Cop);
    } catch (const std::bad_alloc&) {
      exhausted = true;
    }
    Ahead ahead;
    const T* in_plane = nullptr;
    shares.each([&](int64_t unit) {
      if (exhausted) return;
      const int64_t n = unit / E, e = unit % E;
      const bool there = s.first && in_plane == input(n, e);  // the same state as that of the edge before
      in_plane = input(n, e);
      if (unit + 1 < s.N * E) {
        ahead.restart();
        ask_for_input((unit + 1) / E, (unit + 1) % E, ahead);
        ahead.within(s.H * load_groups());
      }
      for (int64_t from = 0, loaded = 0, to; from < s.Ho; from = to) {
        to = std::min(from + R, s.Ho);
        if (!there) load(n, e, loaded, needed(to), plane, ahead);
        loaded = needed(to);
        const int64_t count = (to - from) * s.Wo, C = s.Co, apart = Cop;
        const T* before = plane + from * Wp * Cip;
        T* out = static_cast<T*>(s.out) + (unit * pixels + from * s.Wo) * C;
        T* result = C == apart ? out : padded_output;
        if (has_middle()) {
          T* to_where = s.pointwise ? middle : result;
          convolve(plane, e, from, to, to_where);
          before = to_where;
        }
        if (s.pointwise) pointwise<T>(before, Cmp, Cm, matrix.get() + e * Cm * Cop, s.Co, Cop, count, result);
        for_groups<T>(C, [&](auto group) {
          constexpr int B = group.size;
          const auto load = [&](int64_t p, int i) ALWAYS { return Sd::load(result + p * apart + group.at(i)); };
          if (result != out)
            for (int64_t p = 0; p < count; ++p)
              unrolled<B>([&](auto i) ALWAYS { group.store(out + p * C, load(p, i), i); });
          if (!s.training) return;
          // sums of what differs from the first row's mean, and of its square
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
        mean.get()[n * channels + e * s.Co + c] = sums[c] + sum / all;
        squares.get()[n * channels + e * s.Co + c] = std::max(0.0, sums[2 * Cop + c] - sum * sum / all);
      }
    });
  }
  if (exhausted) throw std::bad_alloc();
  finish_statistics<T>(s, channels, mean.get(), squares.get());
}

template <class T>
void Worker<T>::backward() const {
  const int64_t chunks = std::min(s.N, CHUNKS), channels = E * s.Ci;
  const bool by_taps = s.depthwise_gradient, by_matrix = s.pointwise_gradient;
  Buffer<T> taps_gradient(by_taps ? chunks * E * kk * Cip : 0);
  Buffer<T> matrix_gradient(by_matrix ? chunks * E * s.Co * Cmp : 0);
  Buffer<double> sums(s.first ? 0 : s.N * channels), sums_y(s.first ? 0 : s.N * channels);
  // BatchNorm's backward: gradient * a + output * b + d
  Buffer<T> a(E * Cop), b_(E * Cop), d(E * Cop);
  const double count = static_cast<double>(s.N * pixels);
  const auto total = [&](const double* parts, int64_t e, int64_t c) {
    if (s.source != MIXED_NODES) return parts[e * s.Co + c];
    double sum = 0;
    for (int64_t t = e * s.nodes; t < (e + 1) * s.nodes; ++t)
      sum += (s.gamma_image ? 1.0 : *gamma(0, t)) * parts[t * s.Co + c];
    return sum;
  };
  for (int64_t e = 0; e < E; ++e)
    for (int64_t c = 0; c < s.Co; ++c) {
      const double scale = static_cast<const T*>(s.scale)[e * s.Co + c];
      const double of_nodes = s.source == NODES && !s.gamma_image ? *gamma(0, e) : 1.0, factor = scale * of_nodes;
      const double sum = total(s.sum, e, c), sum_y = total(s.sum_y, e, c);
      if (s.weight_gradient) static_cast<T*>(s.weight_gradient)[e * s.Co + c] = static_cast<T>(of_nodes * sum_y);
      if (s.bias_gradient) static_cast<T*>(s.bias_gradient)[e * s.Co + c] = static_cast<T>(of_nodes * sum);
      a.get()[e * Cop + c] = static_cast<T>(factor);
      if (!s.training) continue;
      const double inverse = static_cast<const T*>(s.inverse)[e * s.Co + c];
      const double offset = static_cast<const T*>(s.offset)[e * s.Co + c];
      const double mean = sum / count, mean_y = sum_y / count;
      b_.get()[e * Cop + c] = static_cast<T>(-factor * inverse * mean_y);
      d.get()[e * Cop + c] = static_cast<T>(-factor * (mean + offset * mean_y));
    }
  // The gradient behind the convolution or pool is a plane with a border where the gradient before it is a
  // convolution or pool again (stride 1); elsewhere it is scattered to a plane as large as the input's.
  const bool scatter = scattered(), border = s.k && !scatter;
  const int64_t G = border ? pad : 0, G_row = s.Wo + 2 * G;
  std::atomic<bool> exhausted{false};
  // edges that write to the same state are dealt out together
  const int64_t together = s.first ? s.T : 1, groups = E / together;
  Shares shares(chunks * groups, s.threads);
#pragma omp parallel num_threads(static_cast<int>(s.threads))
  {
    Scratch<T>& scratch = Scratch<T>::of_thread();
    T *plane = nullptr, *middle = nullptr, *output = nullptr, *behind = nullptr, *maxima = nullptr, *mixed = nullptr,
      *before = nullptr, *own_sums = nullptr;
    try {
      plane = bordered(scratch);
      middle = scratch.take(by_matrix && has_middle() ? R * s.Wo * Cmp : 0);
      output = scratch.take(s.pointwise ? R * s.Wo * Cop : 0);
      behind = scratch.zeros((border ? (s.Ho + 2 * G) * G_row : R * s.Wo) * Cmp);
      maxima = scratch.take(border && s.pool == MAX ? (s.Ho + 2 * G) * G_row * Cip : 0);
      mixed = scratch.take(s.source == MIXED_NODES ? R * s.Wo * s.Co : 0);
      before = scratch.take(scatter ? Hp * Wp * Cip : border ? (R + pad) * s.W * Cip : 0);
      own_sums = scratch.take(2 * Cip);
    } catch (const std::bad_alloc&) {
      exhausted = true;
    }
    Ahead ahead;
    shares.each([&](int64_t unit) {
      if (exhausted) return;
      const int64_t chunk = unit / groups, first_e = unit % groups * together;
      for (int64_t n = chunk * s.N / chunks; n < (chunk + 1) * s.N / chunks; ++n)
        for (int64_t e = first_e; e < first_e + together; ++e) {
          const int64_t t = e % s.T;
          const bool there = s.first && t > 0;  // the same state as that of the edge before
          const bool last_of_image = e + 1 == first_e + together;
          const int64_t next_n = n + last_of_image, next_e = last_of_image ? first_e : e + 1;
          if (next_n < s.N) {
            const int64_t next = next_n * E + next_e, size = pixels * s.Co;
            ahead.restart();
            ahead.add(static_cast<const T*>(s.out) + next * size, size);
            if (s.source == EDGES) ahead.add(static_cast<const T*>(s.gradient) + next * size, size);
            if (s.source == NODES && E == 1) ahead.add(static_cast<const T*>(s.given[0]) + next * size, size);
            ask_for_input(next_n, next_e, ahead);
            ahead.within((there ? 1 : 2) * s.H * load_groups() + s.Ho * num_groups<T>(s.Co));
          }
          if (scatter) std::memset(before, 0, static_cast<size_t>(Hp * Wp * Cip) * sizeof(T));
          std::memset(own_sums, 0, static_cast<size_t>(2 * Cip) * sizeof(T));
          for (int64_t from = 0, loaded = 0, finished = 0, to; from < s.Ho; from = to) {
            to = std::min(from + R, s.Ho);
            if (!there) load(n, e, loaded, needed(to), plane, ahead);
            loaded = needed(to);
            // rows [from, to), G_row pixels apart
            T* inside = behind + (border ? ((from + G) * G_row + G) * Cip : 0);
            normalise(n, t, e, from, to, a.get(), b_.get(), d.get(), mixed, s.pointwise ? output : inside,
                      s.pointwise ? s.Wo : G_row, ahead);
            if (s.pointwise) {
              const T* m = transposed.get() + e * s.Co * Cmp;
              if (border)
                for (int64_t h = 0; h < to - from; ++h)
                  pointwise<T>(output + h * s.Wo * Cop, Cop, s.Co, m, Cm, Cip, s.Wo, inside + h * G_row * Cip);
              else
                pointwise<T>(output, Cop, s.Co, m, Cm, Cmp, (to - from) * s.Wo, inside);
            }
            if (by_matrix) {
              const T* in = plane + from * Wp * Cip;
              if (has_middle()) convolve(plane, e, from, to, middle), in = middle;
              pointwise_weight<T>(output, Cop, s.Co, in, Cm, Cmp, (to - from) * s.Wo,
                                  matrix_gradient.get() + (chunk * E + e) * s.Co * Cmp);
            }
            const T* in_rows = plane + from * s.stride * Wp * Cip;
            if (by_taps)
              with_size(s.k, [&](auto k) {
                constexpr int rows = k * k <= REGISTERS - 5 ? k : 1;  // beside the sums: four values and one
                depthwise_weight<T, k, rows>(
                    in_rows, Wp * Cip, s.stride, s.dilation, inside, G_row * Cip, to - from, s.Wo, Cip,
                    taps_gradient.get() + (chunk * E + e) * kk * Cip);
              });
            // the gradient of the activated input: rows [finished, complete), `row` values apart
            const int64_t complete = to == s.Ho ? s.H : scatter ? 0 : to - G;
            if (scatter && s.pool)
              pool_scatter<T>(in_rows, Wp * Cip, s.stride, s.pool, to - from, s.Wo, Cip, inside,
                              before + from * s.stride * Wp * Cip);
            if (s.odd)
              for_pairs(from, to, [&](int64_t p, int64_t even, int64_t odd) {
                std::memcpy(before + even, inside + p * Cmp, Cip * sizeof(T));
                std::memcpy(before + odd, inside + p * Cmp + Cip, Cip * sizeof(T));
              });
            if (scatter && s.k && !s.pool)
              with_size(s.k, [&](auto k) {
                depthwise_scatter<T, k>(before + from * s.stride * Wp * Cip, Wp * Cip, s.stride, s.dilation,
                                        taps.get() + e * kk * Cip, to - from, s.Wo, Cip, inside, s.Wo * Cip);
              });
            if (border && s.pool == MAX)
              find_maxima<T>(in_rows, Wp * Cip, to - from, s.Wo, Cip, maxima + ((from + G) * G_row + G) * Cip,
                             G_row * Cip);
            if (complete <= finished) continue;
            if (border && s.pool == MAX)
              pool_gather<T>(behind + finished * G_row * Cip, maxima + finished * G_row * Cip, G_row * Cip,
                             complete - finished, s.W, Cip, before);
            else if (border)
              with_size(s.k, [&](auto k) {
                depthwise<T, k>(behind + finished * G_row * Cip, G_row * Cip, 1, s.dilation,
                                flipped.get() + e * kk * Cip, complete - finished, s.W, Cip, before);
              });
            const T* by_input = border ? before : scatter ? before + (pad * Wp + pad) * Cip : behind;
            pass_on(n, t, e, finished, complete, by_input, (scatter ? Wp : s.W) * Cip, plane, own_sums, ahead);
            finished = complete;
          }
          for (int64_t c = 0; !s.first && c < s.Ci; ++c) {
            sums.get()[n * channels + e * s.Ci + c] = own_sums[c];
            sums_y.get()[n * channels + e * s.Ci + c] = own_sums[Cip + c];
          }
        }
    });
  }
  if (exhausted) throw std::bad_alloc();
  if (!s.first) {
    sum_images(sums.get(), s.N, channels, s.in_sum);
    sum_images(sums_y.get(), s.N, channels, s.in_sum_y);
  }
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(s.threads))
  for (int64_t e = 0; e < E; ++e) {
    for (int64_t c = 0; by_taps && c < s.Ci; ++c)
      for (int64_t i = 0; i < kk; ++i) {
        T sum = 0;
        for (int64_t q = 0; q < chunks; ++q) sum += taps_gradient.get()[((q * E + e) * kk + i) * Cip + c];
        static_cast<T*>(s.depthwise_gradient)[(e * s.Ci + c) * kk + i] = sum;
      }
    for (int64_t o = 0; by_matrix && o < s.Co; ++o) {
      T* gradient = weight_row<T>(s.pointwise_gradient, s.odd_gradient, e, o);
      for_groups<T>(s.Ci, [&](auto group) {
        V sum[group.size] = {};
        for (int64_t q = 0; q < chunks; ++q)
          unrolled<group.size>([&](auto i) ALWAYS {
            sum[i] += Sd::load(matrix_gradient.get() + ((q * E + e) * s.Co + o) * Cmp + half(o) + group.at(i));
          });
        unrolled<group.size>([&](auto i) ALWAYS { group.store(gradient, sum[i], i); });
      });
    }
  }
}

}  // namespace

extern "C" {

// The share of all operations in the nodes: each (N, pixels, C) is the sum over operations o and states s of
// gamma[o][e] * (y[o] * scale[o] + shift[o]), where y, scale and shift are those of edge e, or of state s if shared[o],
// and of what other batches of edges have given to the node.
// Each image may have a gamma of its own; the sums of the backward pass are then those of gamma * gradient.
struct Mix {
  int64_t operations, N, S, T, pixels, C, threads;
  const void* const* y;                         // for each operation and state: the first of the edges that leave it
  const void *const *scale, *const *shift;      // for each operation; may be null for 1 and 0
  const int64_t *image, *part, *pixel, *shared;  // for each operation: strides of y between images, edges, pixels
  const int64_t* stages;                         // of each operation, how many
  const void* gamma;                            // (operations, E), or (operations, E, N)
  int64_t gamma_edge, gamma_image;              // its strides between edges and images
  void* const* nodes;                           // T of (N, pixels, C)
  const void* const* onto;                      // forward: what is in the nodes already, null for nothing
  double *const *sum, *const *sum_y;  // backward, for each operation (E * C): of gradient and gradient * operation
  // for each identity and state where its gradient goes, (N, pixels, C), null elsewhere, and what it is added to: that
  // again, something else, or null
  void* const* to_states;
  const void* const* onto_states;
};

}  // extern "C"

namespace {

template <class T>
struct Mixer {
  static constexpr int64_t AHEAD = 16;  // vectors that are asked for before they are needed
  typedef Simd<T> Sd;
  typedef typename Sd::V V;
  const Mix& m;
  const int64_t E;
  explicit Mixer(const Mix& mix) : m(mix), E(mix.S * mix.T) {}

  const T* y(int64_t o, int64_t n, int64_t e) const {
    const T* of_state = static_cast<const T*>(m.y[o * m.S + e / m.T]);
    return of_state + n * m.image[o] + (m.shared[o] ? 0 : e % m.T * m.part[o]);
  }
  const T* gamma(int64_t o, int64_t n, int64_t e) const {
    return static_cast<const T*>(m.gamma) + (o * E + e) * m.gamma_edge + n * m.gamma_image;
  }
  template <class G>
  V coefficient(const void* const* all, int64_t o, int64_t e, G group, int i, T other) const {
    const T* from = static_cast<const T*>(all[o]);
    return from ? group.load(from + (m.shared[o] ? e / m.T : e) * m.C, i) : V{} + other;
  }

  // The share of operations [from, to), added to what is in the nodes.
  void forward(int64_t from_op, int64_t to_op) const {
    for_units(m.N * m.T, m.threads, [&](int64_t unit) {
      const int64_t n = unit / m.T, t = unit % m.T;
      T* out = static_cast<T*>(m.nodes[t]) + n * m.pixels * m.C;
      for_groups<T>(m.C, [&](auto group) {
        constexpr int B = group.size;
        V constant[B] = {};
        for (int64_t o = from_op; o < to_op; ++o)
          for (int64_t e = t; e < E; e += m.T)
            unrolled<B>([&](auto i) ALWAYS {
              constant[i] += *gamma(o, n, e) * coefficient(m.shift, o, e, group, i, 0);
            });
        // four terms at a time, so that the sum is fetched and stored seldom
        const T* from[4] = {};
        V factor[4][B];
        int64_t step[4], terms = 0;
        const T* before = from_op ? static_cast<const T*>(m.nodes[t]) : static_cast<const T*>(m.onto[t]);
        if (before) before += n * m.pixels * m.C;
        const auto add = [&](auto count_of) {
          constexpr int K = count_of;
          for (int64_t p = 0; p < m.pixels; ++p) {
            V v[B];
            unrolled<B>([&](auto i) ALWAYS {
              v[i] = before ? constant[i] + group.load(before + p * m.C, i) : constant[i];
            });
            unrolled<K>([&](auto k) ALWAYS {
              unrolled<B>([&](auto i) ALWAYS {
                __builtin_prefetch(from[k] + (p + AHEAD / B) * step[k] + group.at(i));
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
            for (int i = 0; i < B; ++i)
              factor[terms][i] = *gamma(o, n, e) * coefficient(m.scale, o, e, group, i, 1);
            from[terms] = y(o, n, e);
            step[terms++] = m.pixel[o];
            as_constant<4>(terms, add);
          }
        as_constant<3, 2, 1>(terms, add);
      });
    });
  }

  // The sums of operation o, and where it is an identity its gradient.
  void backward(int64_t o) const {
    const int64_t channels = E * m.C;
    Buffer<double> sums(m.N * channels), sums_y(m.N * channels);
    for_units(m.N * m.T, m.threads, [&](int64_t unit) {
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
            __builtin_prefetch(from + (p + AHEAD / B) * pixel + group.at(i));
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

  void identity_backward(int64_t o) const {
    for_units(m.N * m.S, m.threads, [&](int64_t unit) {
      const int64_t n = unit / m.S, s = unit % m.S;
      const int64_t image = n * m.pixels * m.C;
      const T* onto = static_cast<const T*>(m.onto_states[o * m.S + s]);
      mix_nodes<T>(m.nodes, image, gamma(o, n, s * m.T), m.gamma_edge, m.T, m.pixels, m.C,
                   static_cast<T*>(m.to_states[o * m.S + s]) + image, onto ? onto + image : nullptr);
    });
  }
};

}  // namespace

// The operations' stages in order. Their share of the nodes is added when four terms of each node are complete, or all
// are, while the caches may still hold them.
template <class T>
void forward(const Mix& m, const Stage* stages) {
  Mixer<T> mixer(m);
  for (int64_t o = 0, mixed = 0; o < m.operations; ++o) {
    for (int64_t i = 0; i < m.stages[o]; ++i) Worker<T>(*stages++, false).forward();
    if ((o + 1 - mixed) * m.S < 4 && o + 1 < m.operations) continue;
    mixer.forward(mixed, o + 1);
    mixed = o + 1;
  }
}

// Identities are the first to write the gradients of the states, then the operations with stages.
template <class T>
void backward(const Mix& m, const Stage* stages, bool sums_alone) {
  Mixer<T> mixer(m);
  for (int64_t o = 0; o < m.operations; ++o) {
    if (m.stages[o]) continue;
    mixer.backward(o);
    if (m.to_states[o * m.S]) mixer.identity_backward(o);
  }
  for (int64_t o = 0; o < m.operations; ++o) {
    if (!m.stages[o]) continue;
    mixer.backward(o);
    for (int64_t i = 0; i < m.stages[o] && !sums_alone; ++i) Worker<T>(*stages++, true).backward();
  }
}

// 0, or 1 where memory was lacking.
template <class F>
int done(F f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" {
int forward(const Mix* m, const Stage* s) { return done([&] { forward<REAL>(*m, s); }); }
// The gradients of gamma alone, or all.
int backward(const Mix* m, const Stage* s, int64_t all) { return done([&] { backward<REAL>(*m, s, !all); }); }
}
