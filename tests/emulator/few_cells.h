// Included before everything else by the sources of engine.cpp's program: sanitized code takes long to compile, and
// these two cells have all that kernels distinguish.
#pragma once
#include "cells/cells.h"

#undef FUSED_RNN_CELLS
#define FUSED_RNN_CELLS(X) \
  X(0, Lstm)               \
  X(1, Gru)
