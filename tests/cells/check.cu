// Compiled, never run: every cell is device code in float and double.
#include "every_cell.h"

namespace fused_rnn {

template <class Cell, class T>
__global__ void step(const T* x, const T* r, const T* state, const T* params, T* state_next, T* saved, T* dstate_next,
                     T* dx, T* dr, T* dstate, T* dparams) {
  Cell::forward(x, r, state, params, state_next, saved);
  Cell::advance(saved, state, state_next);
  Cell::backward(saved, state, state_next, params, dstate_next, dx, dr, dstate, dparams);
}

template <class Cell, class T>
void launch(T* a) {
  step<Cell, T><<<1, 1>>>(a, a, a, a, a, a, a, a, a, a, a);
}

void launch_every_cell(float* floats, double* doubles) {
#define LAUNCH(id, Cell) \
  launch<Cell>(floats);  \
  launch<Cell>(doubles);
  EVERY_CELL(LAUNCH)
}

}  // namespace fused_rnn
