// Arguments of the kernels, without CUDA types. Shape letters as in problem.h, Q = M*D problems; S is the layer's dtype
// and T the type that it is computed in (float for 16-bit formats).
#pragma once
#include "core/problem.h"

namespace fused_rnn::cuda {

constexpr int kMaxStates = 2;  // of the persistent kernel's cells, whose states begin at zero

// One step of the time loop; each direction has its own time. The lengths and offsets of packed input are in host
// memory: kernels get a Layer without them, and this instead.
struct Step {
  int64_t rows;                            // batch rows of this step, the larger number of both directions
  int64_t time[kMaxDirections];            // t
  int64_t first_row[kMaxDirections];       // row of (t, 0)
  int64_t present[kMaxDirections];         // batch rows at t: B, or fewer if packed
  int64_t present_at_cut[kMaxDirections];  // the same at the time whose reset_mask this step reads
};

struct ForwardArrays {
  const void* x;  // [M, D, x_rows, G*H] T: W_ih x of a chunk of steps
  int64_t x_rows;
  int64_t x_first_row[kMaxDirections];  // the first row in x
  const void* r;                        // [Q, B, G*H] T: W_hh h
  void* h;                              // [Q, B, P] S: updated in place
  void* masked_h;                       // [Q, B, P] S: with recurrent dropout, h times its factor; else null
  void* c;                              // [Q, B, W] T
  void* wide_h;                         // [Q, B, H] S: with a projection, h before it
  const void* projected;                // [Q, B, P] T: h after it
  void *new_c, *gate;                   // [Q, B, H] T: if c is normalised, before zoneout, and the output gate
};

struct BackwardArrays {
  const void* through_gates;   // [Q, B, P] T: dL/dh through the gates of the previous step of the loop
  int64_t through_gates_rows;  // batch rows that are valid in it
  void* dh;                    // [Q, B, P] T: the other parts of dL/dh
  void* dc;                    // [Q, B, W] T
  void* gates_x;               // [M, N, D, G*H] S: gradients of x, zeros for padding
  void* gates_r;               // the same of r; one array if they are equal
  void* step_gates;            // [Q, B, G*H] S: of r in this step, zeros where nothing flows further back
  void* masked_h;              // [M, N, D, P] S: with recurrent dropout, h as W_hh read it, for dL/dW_hh; or null
  void* outputs;               // [M, N, D, P] S: with a projection, dL/dh
  void* step_outputs;          // [Q, B, P] S
  const void* wide;            // [Q, B, H] T: the gradient of h before it
  void* wide_h;                // [M, N, D, H] S: h before it
  void* params;                // [Q, B, kParams, H] T: gradients of the per-unit parameters, summed over the steps
  // With layer norm, all T: of this step [Q, B, G*H] dL/dx and dL/dr, one array when they are equal; if c is normalised,
  // [Q, B, H] dL/dh, what c gets from it, and tanh of the normalised c. [Q, B, NormSums::count, H]: sums over the steps.
  void *normed_x, *normed_r, *normed_h, *to_c, *tanh_c, *norms;
  void* whole[2];  // [Q, B, P] of h and [Q, B, W] T: the states' whole gradients, for norms, or null
};

}  // namespace fused_rnn::cuda
