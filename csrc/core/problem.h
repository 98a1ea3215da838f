// What an engine is asked to compute: sizes and pointers, no torch.
//
// Shape letters, here and in every engine:
//   M members (independent sets of weights)   D directions   T steps   B batch   I input   H hidden   G gates
//   P width of h: H, or proj_size             N rows: T*B, or the number of packed rows
//   W width of all states after h, side by side: (kStates - 1) * H, called c here
//   R saved values of one row and direction   K groups of batch rows with weight gradients of their own
// A *problem* is one direction of one member, with its own weights; problems are independent of each other.
// Arrays are contiguous in the shape given with them, and of the layer's dtype unless stated otherwise. A null pointer
// among the arguments says that nothing was given; what was given has an address even if it is empty.
#pragma once
#include <stdint.h>

#include "cells/function.h"

namespace fused_rnn {

enum class Dtype : int { kFloat, kDouble, kBFloat16, kHalf };

constexpr int kMaxDirections = 2;

// How weights are packed: as the layer's dtype is best multiplied, or as integers of 8 bits, which input and h then
// become too, or do not.
enum class WeightFormat : int { kOwn, kInt8, kInt8WeightsOnly };

// One direction's weights; null where the layer has none.
struct Weights {
  const void* ih;       // [M, G*H, I]
  const void* hh;       // [M, G*H, P]
  const void* bias_ih;  // [M, G*H]
  const void* bias_hh;  // [M, G*H]
  const void* hr;       // [M, P, H]   projection
  const void* params;   // [M, kParams, H]
  // Layer norm: x = gain_ih * normalised(W_ih x) + b_ih, over all units and gates, r likewise.
  const void* gain_ih;  // [M, G*H]
  const void* gain_hh;  // [M, G*H]
  // Then a cell with an output gate has h = o * tanh(gain_c * normalised(c) + bias_c).
  const void* gain_c;  // [M, H]
  const void* bias_c;  // [M, H] or null
};

// One direction's weight gradients; null where not asked for.
struct WeightGradients {
  void* ih;       // [M, K, G*H, I]
  void* hh;       // [M, K, G*H, P]
  void* bias_ih;  // [M, K, G*H]
  void* bias_hh;  // [M, K, G*H]
  void* hr;       // [M, K, P, H]
  void* params;   // [M, K, kParams, H]
  void* norms;    // [M, K, NormSums::count, H] with layer norm, whose biases are among them (saved_row.h)
};

// What forward and backward share.
struct Layer {
  int64_t cell;
  Dtype dtype;
  int32_t device;  // index of the device that the arrays are on
  int64_t members, directions, steps, batch, rows, input_size, hidden, output_size;  // M D T B N I H P
  int64_t saved_width;                                                               // R

  const void* input;            // [M, N, I]
  const int64_t* tokens;        // [M, N], instead of `input`: row n is one-hot, with its one at tokens[n]
  int64_t input_member_stride;  // N*I, with tokens N; 0 when the members share one input
  const void* h0;               // [M, D, B, P]; null: as the cell says, zeros for tangents
  const void* c0;               // [M, D, B, W]; likewise
  Weights weights[kMaxDirections];
  const void* packed;   // the same weights as packed by Engine::pack, or null
  WeightFormat format;  // of `packed`

  // Row b is active at t < lengths[b]. Null: always.
  const int64_t* lengths;  // [M, B]
  int64_t lengths_member_stride;
  // True at (t, b) cuts row b between steps t-1 and t. Null: never.
  const uint8_t* reset;  // [M, T, B]; bytes, since a bool that is neither 0 nor 1 is undefined behaviour
  int64_t reset_member_stride;
  // Recurrent dropout: h is multiplied by it before W_hh. Null: by one.
  const void* h_factor;  // [M, D, B, P]
  // Zoneout, if any: where the mask is not 0, a unit keeps its former state; without a mask each state is
  // zoneout * former + (1 - zoneout) * new, with one number for h and one for the states after it. Not with a projection.
  bool zones_out;
  const uint8_t* zoneout_mask;  // [M, N, D, kStates*H] or null
  double zoneout[2];
  // Packed input: step t holds its active rows only, at offsets[t] onward. Null: step t starts at row t*B.
  const int64_t* offsets;  // [T]
  // Above 0, the backward pass gets no more than the states that enter every segment-th step of the loop, counted from
  // its end (saved_row.h), and computes the rest again, segment by segment.
  int64_t segment;
};

struct Forward : Layer {
  void* output;  // [M, N, D*P]; zeros where a padded row is past its end
  void* h_n;     // [M, D, B, P]; on the CPU, without lengths, it may be h0, and c_n may be c0
  void* c_n;     // [M, D, B, W]; cells with a second state only
  void* cells;   // [M, N, D*W], the states after h after every step; null when not asked for
  void* saved;   // [M, D, N, R], for the backward pass, in the engine's own layout (saved_row.h). Null in inference.
  void* kept;    // [M, D, segments, B, P + W] in the arithmetic type: instead of `saved`, if there are segments
  // A segment again: the loop's steps [first_step, last_step), from what was kept, for `saved` alone, which then is that of
  // one segment. `output` is [M, D, B, P], overwritten by every step, and there are no other results.
  bool runs_again;
  int64_t first_step, last_step;

  // With `primal`, the values saved by a forward pass, this computes that pass's derivative along a direction (its
  // *tangent*): states, results, `saved` and the following are then tangents, and `input` is not read.
  const void* primal;     // [M, D, N, R]
  const void* tangent_x;  // [M, N, D, G*H] of x; null: zeros, likewise below
  const void* tangent_r;  // [M, N, D, G*H] of r, without W_hh times the tangent of h
  const void* tangent_h;  // [M, N, D, P] with a projection: added to the tangent of h after it
};

// Does not change `saved` or the inputs, so it may run twice (retain_graph).
struct Backward : Layer {
  const void* saved;
  const void* kept;         // instead, if there are segments
  const void* grad_output;  // [M, N, D*P]; null: zeros, likewise below
  const void* grad_h_n;     // [M, D, B, P]
  const void* grad_c_n;     // [M, D, B, W]
  const void* grad_cells;   // [M, N, D*W]

  int64_t weight_groups;  // K: the batch is split into K equal runs of rows, each with its own weight gradients
  void* grad_input;       // [M, N, I], per member even when the input is shared; null when not asked for
  void* grad_h0;          // [M, D, B, P]; on the CPU null when not asked for
  void* grad_c0;          // [M, D, B, W]; cells with a second state only; likewise
  WeightGradients grads[kMaxDirections];
  // Above 0: dL/dh of each step, once complete, is clamped to [-grad_clip, grad_clip] before it flows on.
  double grad_clip;
  // [M, D, kStates, T] in the arithmetic type (float for 16-bit): norm over batch and units of the gradient of each
  // state after each step, after clipping; null when not asked for.
  void* grad_norms;

  // Intermediate gradients, for second derivatives. Null when not asked for; padding is not written.
  void* trace_x;       // [M, N, D, G*H] gradient of x
  void* trace_r;       // [M, N, D, G*H] of r
  void* trace_states;  // [M, N, D, kStates, H] of each state as the cell returns it, from outside its step
  void* trace_output;  // [M, N, D, P] with a projection: of h after it
  void* trace_wide;    // [M, N, D, H] with a projection: h before it (of a tangent: its tangent)

  // With `saved_tangent`, this computes the tangent of a backward pass: all gradients, in and out, are then tangents.
  const void* saved_tangent;  // [M, D, N, R]
  const void* traced_states;  // trace_states of that pass
  const void* added_h;        // [M, N, D, P] added to the gradient of the h that enters a step; null: zeros
  const void* added_wide;     // [M, N, D, H] with a projection: added to that of the h before it
};

// Internal linkage: this header, too, is compiled for several instruction sets (see cells/math.h).
namespace {

FUSED_RNN_FN bool projected(const Layer& layer) { return layer.weights[0].hr != nullptr; }

// Layer norm: of W_ih x and W_hh h, and of c. Added to variances: kNormEpsilon.
FUSED_RNN_FN bool normalizes(const Layer& layer) { return layer.weights[0].gain_ih != nullptr; }
FUSED_RNN_FN bool normalizes_c(const Layer& layer) { return layer.weights[0].gain_c != nullptr; }
constexpr double kNormEpsilon = 1e-5;

FUSED_RNN_FN int64_t row_of(const Layer& layer, int64_t t, int64_t b) {
  return (layer.offsets ? layer.offsets[t] : t * layer.batch) + b;
}

FUSED_RNN_FN bool is_active(const Layer& layer, int64_t member, int64_t t, int64_t b) {
  return !layer.lengths || t < layer.lengths[member * layer.lengths_member_stride + b];
}

// Whether row b's state is zeroed before direction d computes step t. The reverse direction computes s before s-1, so
// there the cut before step s applies to step s-1. Cuts at or past the row's end are ignored.
FUSED_RNN_FN bool is_reset(const Layer& layer, int64_t member, int64_t d, int64_t t, int64_t b) {
  const int64_t cut = d == 0 ? t : t + 1;
  return layer.reset && cut < layer.steps && is_active(layer, member, cut, b) &&
         layer.reset[member * layer.reset_member_stride + cut * layer.batch + b];
}

}  // namespace
}  // namespace fused_rnn
