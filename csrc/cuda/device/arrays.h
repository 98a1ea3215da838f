// What the kernels of a pass work on. Nothing here is CUDA's. Shape letters are problem.h's, Q = M*D problems; S is the
// layer's dtype, T the type of its arithmetic (float for 16-bit formats).
#pragma once
#include "core/problem.h"

namespace fused_rnn::cuda {

// One step of the walk through time: each direction is at a time of its own. Lengths of packed input lie on the host,
// so what a kernel must know of them stands here, and its Layer has neither lengths nor offsets.
struct Step {
  int64_t rows;                            // of the batch that any direction has in this step
  int64_t time[kMaxDirections];            // t
  int64_t first_row[kMaxDirections];       // row of (t, 0)
  int64_t present[kMaxDirections];         // rows of the batch at t: B, fewer when packed
  int64_t present_at_cut[kMaxDirections];  // likewise at the time whose reset_mask this step reads
};

struct ForwardArrays {
  const void* x;  // [M, D, x_rows, G*H] T: W_ih x of some steps
  int64_t x_rows;
  int64_t x_first_row[kMaxDirections];  // the row that begins there
  const void* r;                        // [Q, B, G*H] T: W_hh h
  void* h;                              // [Q, B, P] S: before the step, then after it
  void* c;                              // [Q, B, H] T
  void* wide_h;                         // [Q, B, H] S: with a projection, h before it
  const void* projected;                // [Q, B, P] T: and h after it
};

struct BackwardArrays {
  const void* through_gates;   // [Q, B, P] T: dL/dh that came back through the gates of the step walked before
  int64_t through_gates_rows;  // rows of the batch that it has
  void* dh;                    // [Q, B, P] T: what reaches h otherwise
  void* dc;                    // [Q, B, H] T
  void* gates_x;               // [M, N, D, G*H] S: gradients of x, zeros for padding
  void* gates_r;               // likewise of r; the same array where they are equal
  void* step_gates;            // [Q, B, G*H] S: those of r in this step, zeros where nothing flows further back
  void* outputs;               // [M, N, D, P] S: with a projection, dL/dh
  void* step_outputs;          // [Q, B, P] S
  const void* wide;            // [Q, B, H] T: and the gradient of h before it
  void* wide_h;                // [M, N, D, H] S: and that h
  void* params;                // [Q, B, kParams, H] T: gradients of the per-unit parameters, summed over the steps
  void* whole[kMaxStates];     // [Q, B, P] and [Q, B, H] T: each state's whole gradient, for norms; null: not asked for
};

}  // namespace fused_rnn::cuda
