// What ends a wait: barriers of which all have come, asynchronous stores that arrive.
#pragma once
#include "grid.h"

namespace ptx {

bool is_shuffled();  // whether chance decides what happens next

void make_ready(Warp& w);
void end_block_barrier_if_due(Block& b);
void end_cluster_barrier_if_due(Cluster& c);
// The one of this number among those on the way.
void deliver(Grid& g, size_t which);

}  // namespace ptx
