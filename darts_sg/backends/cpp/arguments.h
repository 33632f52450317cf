// The arguments that darts_sg/backends/cpp/run.py passes to the kernels: numbers, sizes and addresses.
//
// Python fills both structures in as tables of 64-bit words, so every field has 64 bits, and the order of the fields
// must be that of STAGE_FIELDS and MIX_FIELDS in run.py. A pointer that is not needed is null.

#pragma once

#include <cstdint>

namespace {

enum Activation : int64_t { NONE = 0, RELU = 1, RELU6 = 2 };
enum Pool : int64_t { NO_POOL = 0, MAX = 1, AVERAGE = 2 };
// What a routing step does with the channels (see RouteArgs).
enum Route : int64_t { TAKE = 0, HALVE = 1, SHUFFLE = 2 };
// Where a stage's backward pass finds its output's gradient: in a tensor of its own (EDGES), in the node that each edge
// leads to, times gamma (NODES), or summed over all nodes, each times its gamma (MIXED_NODES: shared operations).
enum Source : int64_t { EDGES = 0, NODES = 1, MIXED_NODES = 2 };

}  // namespace

extern "C" {

// One stage on E = S * T edges of N images: from H x W pixels with Ci channels to Ho x Wo pixels with Co channels.
//
// With `packed` > 1, `packed` neighbouring images stand side by side in the channels of one: N, Ci and Co count these.
// Weights and running statistics stay those of a single image, with Ci / packed and Co / packed channels.
struct StageArgs {
  int64_t N, S, T, H, W, Ho, Wo, Ci, Co, k, stride, dilation, pool, activation, first, norm, training, threads;
  int64_t packed;
  // Input of a first stage: the states, each in `parts` tensors whose channels follow each other.
  int64_t in_n, in_pixel;  // strides of the states between images and between pixels
  int64_t parts;
  const void* const* states;  // S * parts tensors
  // Input of a later stage: the output of the stage before, (N, E, H, W, Ci), with its BatchNorm, each (E * Ci).
  const void *in, *in_scale, *in_shift;  // normalised as y * scale + shift
  const void *in_inverse, *in_offset;    // the same without weight and bias; null where they are the same
  // Weights, for packed = 1.
  const void *depthwise, *pointwise;  // (E * Ci, 1, k, k) and (E * Co, Ci, 1, 1)
  const void* odd;                    // of odd pixels, (E * (Co - Co / 2), Ci, 1, 1); pointwise then has even pixels
  void* out;                          // (N, E, Ho, Wo, Co), before BatchNorm; of a BatchNorm alone, its input
  // This stage's BatchNorm, each (E * Co). Without weight and bias, inverse is scale and offset is shift.
  void *scale, *shift, *inverse, *offset, *running_mean, *running_var;
  const void *weight, *bias;
  double momentum, eps;
  // Backward: the gradient of the normalised output (see Source).
  const void* gradient;             // EDGES: (N, E, Ho, Wo, Co)
  const void* const* given;         // NODES, MIXED_NODES: of each node, (N, Ho, Wo, Co)
  int64_t source, nodes;            // nodes: their number, for MIXED_NODES
  const void* gamma;                // NODES: for each edge, MIXED_NODES: for each of S * nodes
  int64_t gamma_edge, gamma_image;  // strides of gamma; gamma_image is 0 unless each image has its own
  const double *sum, *sum_y;        // over images and pixels, of gradient and of gradient * (y * inverse + offset)
  // Backward: where the gradient of the normalised input goes.
  void* in_gradient;               // later stages: (N, E, H, W, Ci)
  void* const* to_states;          // first stage: for each part of each state, (N, H, W, Ci / parts)
  const void* const* onto_states;  // what to_states is added to: itself, another tensor, or null for nothing
  double *in_sum, *in_sum_y;       // later stages: `sum` and `sum_y` for the stage before, (E * Ci)
  void *depthwise_gradient, *pointwise_gradient, *odd_gradient, *weight_gradient, *bias_gradient;
};

// The weighted sum of all operations in T nodes. Each node (N, pixels, C) is the sum over operations o and states s of
// gamma[o][e] * (y[o] * scale[o] + shift[o]), plus `onto`. y, scale and shift belong to edge e, or to state s where
// shared[o]. If each image has a gamma of its own, the sums of the backward pass include it.
struct MixArgs {
  int64_t operations, N, S, T, pixels, C, threads;
  const void* const* y;                          // for each operation and state: the first of the edges that leave it
  const void *const *scale, *const *shift;       // for each operation; null means 1 and 0
  const int64_t *image, *part, *pixel, *shared;  // for each operation: strides of y between images, edges, pixels
  const int64_t* stages;                         // for each operation: the number of its stages
  const void* gamma;                             // (operations, E), or (operations, E, N)
  int64_t gamma_edge, gamma_image;               // its strides between edges and images
  void* const* nodes;                            // T of (N, pixels, C)
  const void* const* onto;                       // forward: what the nodes hold already, null for nothing
  double *const *sum, *const *sum_y;  // backward, for each operation (E * C): of gradient and gradient * operation
  // Backward of an identity, for each operation and state (null for other operations): where the state's gradient goes,
  // (N, pixels, C), and what it is added to (itself, another tensor, or null for nothing).
  void* const* to_states;
  const void* const* onto_states;
};

// A step of a cell with partial channels that moves channels: only the first C / K of a state's C channels go through
// the operations, the others by-pass them (PC-DARTS, section 3.2). `packed` is that of StageArgs.
//   TAKE     the first C / K channels of a state (N, H, W, C) as (N / packed, H, W, packed * C / K)
//   HALVE    2x2 max pool of a state, with a last window of one row or column where H or W is odd: (N, Ho, Wo, C)
//   SHUFFLE  the sum of gamma * state over all states but the first, whose first C / K channels are replaced by those
//            that TAKE's layout has in the first state; then channel g * C / K + i goes to i * K + g: (N, H, W, C);
//            and what TAKE makes of that, unless `taken` is null
struct RouteArgs {
  int64_t kind, N, H, W, Ho, Wo, C, K, packed, num_states, threads;
  const void* const* states;
  const void* gamma;  // SHUFFLE: (num_states - 1)
  void *node, *taken;  // forward: the outputs; backward: their gradients
  // Backward of TAKE and HALVE: where the state's gradient goes, and what it is added to (itself, another tensor, or
  // null for nothing; TAKE adds to what is there already). Of SHUFFLE: where the gradient of the first state goes.
  void* const* to_states;
  const void* const* onto_states;
  // SHUFFLE, backward. A state is read by several nodes, so its gradient is summed up once, from the gradients of all
  // these nodes: those of this node's step (the first) and of later steps. `sinks` are the states whose gradients are
  // complete with this step; the node itself is one, before its gradient is read, if later steps read it.
  int64_t num_later, num_sinks, adds_to_node;  // adds_to_node: 1 if the first sink is the node
  const void* const* later;                    // num_later: the gradients of later nodes; null for one that has none
  void* const* to_sinks;                       // num_sinks: where the gradient goes
  const void* const* onto_sinks;               // what it is added to, as for states
  const void* const* sink_states;              // the states themselves
  const void* const* factors;                  // (num_sinks, 1 + num_later): gamma; null where a node does not read it
  double* const* sink_sums;                    // the same: C sums over images and pixels for the gradient of gamma
};

}  // extern "C"
