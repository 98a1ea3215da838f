// The order in which threads take their turns. CUDA promises none, so a kernel must be right in every one of these.
#pragma once
#include <cstdint>

namespace emulator {

enum class Order { kForward, kReverse, kShuffled, kBlockAhead, kWarpAhead };
constexpr unsigned kOrders = 5;

struct Schedule {
  unsigned seed;

  // Seeds 0 .. kOrders - 1 are the orders in turn; higher ones repeat them with other random numbers.
  Order order() const { return static_cast<Order>(seed % kOrders); }
  // Memory that is written asynchronously changes at once in the two plain orders, and late in the others.
  bool delays_stores() const { return order() != Order::kForward && order() != Order::kReverse; }
};

// The schedule of the next launches.
inline Schedule schedule = {0};

struct Thread;
inline thread_local Thread* running = nullptr;  // whose turn it is

}  // namespace emulator
