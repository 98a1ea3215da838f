// How the operators complain.
#pragma once
#include <sstream>
#include <stdexcept>

namespace fused_rnn {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace fused_rnn

// Not STD_TORCH_CHECK, which puts the file and line before the message: these are read by users. What the message is
// made of is evaluated only when it is needed.
#define FUSED_RNN_CHECK(condition, ...) \
  if (!(condition)) fail(__VA_ARGS__)
