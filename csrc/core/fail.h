// Errors of the operators.
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

// Unlike STD_TORCH_CHECK without file and line, as users read these messages. The message's parts are evaluated only on
// failure.
#define FUSED_RNN_CHECK(condition, ...) \
  if (!(condition)) fail(__VA_ARGS__)
