// C++ kernels for CPUs: chains of (activation - depthwise convolution - 1x1 convolution - BatchNorm) stages on all
// edges of a batch, and their weighted sum in the nodes of a cell. One translation unit: the headers are only included
// here, so that everything is inlined. darts_sg/backends/cpp/build.py compiles it with REAL defined as float or double.
//
// Why: in PyTorch a stage is bound by memory traffic, because each layer reads and writes a tensor that no cache holds.
// Here a stage reads its input once, takes one edge of one image at a time through all its layers, in blocks of rows
// that stay in the L1 cache, and writes one tensor, the output before BatchNorm. That BatchNorm and the next activation
// are applied by the reader of the tensor. The backward pass recomputes what lies between.
//
// BatchNorm is y * inverse + offset; with weight and bias (affine) it is y * scale + shift, but the sums that its
// backward pass needs are still those of y * inverse + offset, because the weight may be zero.
//
// Two special stages: a pool, without weights and once per state instead of once per edge, whose BatchNorm may be
// missing; and HalvingConv, the skip connection of stride 2: a 1x1 convolution of the even pixels, (0, 0) of each 2x2,
// beside one of the odd pixels, (1, 1), computed as one matrix product of both side by side.
//
// Narrow channels (partial channels, PC-DARTS) would leave most of a vector empty, so neighbouring images stand side by
// side in it: four images of four channels are one image of 16, with block-diagonal 1x1 convolutions and BatchNorms
// whose sums run over the four.
//
// Tensors: the input of a first stage is a state (N, H, W, C) with any stride between pixels, or several tensors whose
// channels follow each other. All others are dense: (N, E, H, W, C), and (N, H, W, C) for a node. Edge e = s * T + t
// leads from state s to node t; for a pool T is 1.
//
// The number of threads changes no bit: sums are kept for each image and added in one order.
//
//   arguments.h       what Python passes in          depthwise.h, pointwise.h, pools.h   the layers
//   vectors.h         SIMD vectors, unrolling        stage.h, stage_forward.h, stage_backward.h   a stage
//   memory.h          scratch memory, prefetching    mixing.h   weighted sums in nodes
//   threads.h         distribution of work             routing.h   channels that by-pass the operations
//   inference.h       whole graphs without gradients

#include <cstdint>
#include <new>

#include "arguments.h"
#include "inference.h"
#include "mixing.h"
#include "routing.h"
#include "stage.h"
#include "stage_backward.h"
#include "stage_forward.h"

// Runs the stages of all operations in order. Operations are added to the nodes as soon as four terms of each node are
// complete, while the caches may still hold them.
template <class T>
void forward(const MixArgs& m, const StageArgs* stages) {
  Mixer<T> mixer(m);
  for (int64_t o = 0, mixed = 0; o < m.operations; ++o) {
    for (int64_t i = 0; i < m.stages[o]; ++i) StageKernel<T>(*stages++, false).forward();
    if ((o + 1 - mixed) * m.S < 4 && o + 1 < m.operations) continue;
    mixer.forward(mixed, o + 1);
    mixed = o + 1;
  }
}

// Identities write the states' gradients first, then the operations with stages add to them. run.py (set_adds) relies
// on this order.
template <class T>
void backward(const MixArgs& m, const StageArgs* stages, bool sums_only) {
  Mixer<T> mixer(m);
  for (int64_t o = 0; o < m.operations; ++o) {
    if (m.stages[o]) continue;
    mixer.backward(o);
    if (m.to_states[o * m.S]) mixer.identity_backward(o);
  }
  for (int64_t o = 0; o < m.operations; ++o) {
    if (!m.stages[o]) continue;
    mixer.backward(o);
    for (int64_t i = 0; i < m.stages[o] && !sums_only; ++i) StageKernel<T>(*stages++, true).backward();
  }
}

// Status of a call: 0, or 1 if memory ran out.
template <class F>
int status_of(F f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" {
// `s` are the stages of all operations, in the order of the operations.
int forward(const MixArgs* m, const StageArgs* s) {
  return status_of([&] { forward<REAL>(*m, s); });
}
// all: compute every gradient; otherwise only the sums that gamma's gradient is made of.
int backward(const MixArgs* m, const StageArgs* s, int64_t all) {
  return status_of([&] { backward<REAL>(*m, s, !all); });
}
// A routing step, and its gradients: `all` as above; `sums`: gamma's gradient is wanted.
int route_forward(const RouteArgs* r) {
  return status_of([&] { Router<REAL>(*r).forward(); });
}
int route_backward(const RouteArgs* r, int64_t all, int64_t sums) {
  return status_of([&] { Router<REAL>(*r).backward(all, sums); });
}
// A graph in eval mode: see Inference. Null if memory ran out.
void* inference_new(int64_t* words, const int64_t* steps, int64_t num_steps, int64_t first_stage) {
  void* made = nullptr;
  status_of([&] { made = new Inference<REAL>(words, steps, num_steps, first_stage); });
  return made;
}
int inference_run(void* const* each, int64_t count, const int64_t* chunks, const int64_t* places,
                  const int64_t* strides, int64_t num_places) {
  return status_of([&] {
    run_inferences<REAL>(reinterpret_cast<Inference<REAL>* const*>(each), count, chunks, places, strides, num_places);
  });
}
void inference_delete(void* inference) { delete static_cast<Inference<REAL>*>(inference); }
// Number of values in a vector.
int64_t vector_size() { return Simd<REAL>::L; }
}
