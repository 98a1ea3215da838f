// The library's cells, and those of the tests.
#pragma once
#include "cells/cells.h"
#include "cells/dual.h"
#include "linear_lstm.h"
#include "min_gru.h"
#include "peephole_lstm.h"

#define EVERY_CELL(X) \
  FUSED_RNN_CELLS(X)  \
  X(-1, PeepholeLstm) \
  X(-2, MinGru)       \
  X(-3, LinearLstm)
