// A stream: layers called one step at a time, on states that the caller owns. For Python through ctypes, without
// tensors or the dispatcher (fused_rnn/nn/stream.py, which checks what it passes).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstring>
#include <vector>

#include "core/dispatch.h"
#include "core/engine.h"
#include "core/export.h"
#include "core/fail.h"
#include "core/formats.h"
#include "core/registry.h"
#include "ops/memory.h"
#include "ops/packed.h"

namespace fused_rnn {
namespace {

int64_t element_size(Dtype dtype) {
  return dispatch_dtype<BFloat16, Half>(dtype, [](auto s) { return int64_t(sizeof(typename decltype(s)::type)); });
}

class Stream {
 public:
  // `packed`: of each layer. `h`, `c`: each layer's states, which steps read and overwrite; c of cells that have it.
  Stream(int64_t layers, const void* const* packed, const int64_t* packed_bytes, int64_t batch, void* const* h,
         void* const* c)
      : engine_(engine_for(torch::headeronly::DeviceType::CPU)), layers_(layers), outputs_(layers) {
    for (int64_t k = 0; k < layers; ++k) {
      Forward& f = layers_[k] = {};
      read_packed(packed[k], packed_bytes[k], f, engine_);
      FUSED_RNN_CHECK(f.directions == 1, "fused_rnn: a stream's layers have one direction");
      f.steps = 1;
      f.batch = f.rows = batch;
      f.h0 = f.h_n = h[k];  // the engine has read a state before it writes it
      if (traits_of_any(f.cell).states > 1) f.c0 = f.c_n = c[k];
      const int64_t row = element_size(f.dtype) * batch;
      if (k == 0) copy_.resize(row * f.input_size);
      output_bytes_ = row * f.output_size;
      if (k + 1 < layers) outputs_[k].resize(output_bytes_);
    }
    for (int64_t k = 0; k + 1 < layers; ++k) {
      layers_[k].output = outputs_[k].data();
      layers_[k + 1].input = outputs_[k].data();
    }
  }

  void step(const void* input, void* output) {
    FUSED_RNN_CHECK(input != nullptr || copy_.empty(), "fused_rnn: the input's storage was freed");
    Forward& first = layers_.front();
    first.tokens = nullptr;
    first.input = input;
    if (overlaps(input, output)) {  // the output of some units is written before others have read the input
      std::memcpy(copy_.data(), input, copy_.size());
      first.input = copy_.data();
    }
    run(output);
  }

  void step_ids(const int64_t* ids, void* output) {
    FUSED_RNN_CHECK(ids != nullptr, "fused_rnn: the input's storage was freed");
    Forward& first = layers_.front();
    for (int64_t b = 0; b < first.batch; ++b)
      FUSED_RNN_CHECK(0 <= ids[b] && ids[b] < first.input_size, "fused_rnn: ids must lie between 0 and ",
                      first.input_size - 1, ", as input_size is ", first.input_size, "; got ", ids[b], " in row ", b);
    first.input = nullptr;
    first.tokens = ids;
    run(output);
  }

  // Steps are refused once the memory of one of these is another.
  void watch(std::vector<torch::stable::Tensor> weights) {
    weights_ = std::move(weights);
    for (const auto& weight : weights_) memories_.push_back(weight.data_ptr());
  }
  bool memory_changed() const {
    for (size_t i = 0; i < weights_.size(); ++i)
      if (weights_[i].data_ptr() != memories_[i]) return true;
    return false;
  }

  // Runs f() and keeps the message of its exception, if there is one; returns whether there is none.
  template <class F>
  bool succeeds_alone(F f) {
    if (busy_.test_and_set(std::memory_order_acquire)) {
      std::snprintf(error, sizeof error, "fused_rnn: two threads at once in a stream: give each thread its own");
      return false;
    }
    const bool succeeded = succeeds(error, sizeof error, [&] {
      FUSED_RNN_CHECK(!memory_changed(), "fused_rnn: a weight of the stream's model was replaced");
      f();
    });
    busy_.clear(std::memory_order_release);
    return succeeded;
  }

  char error[512] = "";

 private:
  bool overlaps(const void* input, const void* output) const {
    const auto in = reinterpret_cast<uintptr_t>(input), out = reinterpret_cast<uintptr_t>(output);
    return in < out + output_bytes_ && out < in + copy_.size();
  }

  void run(void* output) {
    layers_.back().output = output;
    for (const Forward& f : layers_) {
      scratch_.begin();
      engine_.forward(f, [this](int64_t bytes) { return scratch_.take(bytes); });
    }
  }

  const Engine& engine_;
  std::vector<Forward> layers_;
  std::vector<std::vector<char>> outputs_;  // of all layers but the last
  std::vector<char> copy_;                  // of the input
  std::vector<torch::stable::Tensor> weights_;
  std::vector<const void*> memories_;  // of the weights
  int64_t output_bytes_ = 0;
  KeptScratch scratch_;
  std::atomic_flag busy_;
};

Stream& at(void* stream) { return *static_cast<Stream*>(stream); }

// A step's tensors, as they were when its caller checked them.
class Bound {
 public:
  Bound(Stream& stream, torch::stable::Tensor input, torch::stable::Tensor output)
      : stream_(stream),
        input_(std::move(input)),
        output_(std::move(output)),
        from_(input_.data_ptr()),
        to_(output_.data_ptr()),
        input_numel_(input_.numel()),
        output_numel_(output_.numel()),
        has_ids_(input_.scalar_type() == torch::headeronly::ScalarType::Long) {}

  bool step() {
    return stream_.succeeds_alone([&] {
      const bool are_same = input_.data_ptr() == from_ && output_.data_ptr() == to_ && input_.is_contiguous() &&
                            output_.is_contiguous() && input_.numel() == input_numel_ &&
                            output_.numel() == output_numel_;
      FUSED_RNN_CHECK(are_same, "Stream: the memory of a bound tensor was replaced, or its layout; bind it again");
      if (has_ids_) return stream_.step_ids(static_cast<const int64_t*>(from_), to_);
      stream_.step(from_, to_);
    });
  }

 private:
  Stream& stream_;
  torch::stable::Tensor input_, output_;
  const void* from_;
  void* to_;
  int64_t input_numel_, output_numel_;
  bool has_ids_;
};

}  // namespace
}  // namespace fused_rnn

using fused_rnn::Bound;
using fused_rnn::Stream;

// Null on failure, and then the reason in `error`.
FUSED_RNN_EXPORT void* fused_rnn_open_stream(int64_t layers, const void* const* packed, const int64_t* packed_bytes,
                                             int64_t batch, void* const* h, void* const* c, char* error,
                                             int64_t error_size) {
  Stream* stream = nullptr;
  fused_rnn::succeeds(error, error_size, [&] { stream = new Stream(layers, packed, packed_bytes, batch, h, c); });
  return stream;
}
FUSED_RNN_EXPORT void fused_rnn_close_stream(void* stream) { delete &fused_rnn::at(stream); }

// input [B, I], ids [B], output [B, P]. Zero on success; otherwise fused_rnn_stream_error has the reason.
FUSED_RNN_EXPORT int fused_rnn_step_stream(void* stream, const void* input, void* output) {
  Stream& s = fused_rnn::at(stream);
  return !s.succeeds_alone([&] { s.step(input, output); });
}
FUSED_RNN_EXPORT int fused_rnn_step_stream_ids(void* stream, const int64_t* ids, void* output) {
  Stream& s = fused_rnn::at(stream);
  return !s.succeeds_alone([&] { s.step_ids(ids, output); });
}
FUSED_RNN_EXPORT int fused_rnn_step_bound(void* bound) { return !static_cast<Bound*>(bound)->step(); }
FUSED_RNN_EXPORT void fused_rnn_unbind_stream(void* bound) { delete static_cast<Bound*>(bound); }
FUSED_RNN_EXPORT const char* fused_rnn_stream_error(void* stream) { return fused_rnn::at(stream).error; }

namespace fused_rnn {
namespace {
void watch_weights(int64_t stream, std::vector<torch::stable::Tensor> weights) {
  at(reinterpret_cast<void*>(stream)).watch(std::move(weights));
}
// To be deleted by fused_rnn_unbind_stream.
int64_t bind_stream(int64_t stream, torch::stable::Tensor input, torch::stable::Tensor output) {
  Stream& own = at(reinterpret_cast<void*>(stream));
  return reinterpret_cast<int64_t>(new Bound(own, std::move(input), std::move(output)));
}
}  // namespace
}  // namespace fused_rnn
// The operators of streams, called when one is made or bound: tensors do not pass through ctypes.
STABLE_TORCH_LIBRARY_FRAGMENT(fused_rnn, m) {
  m.def("watch_weights(int stream, Tensor[] weights) -> ()");
  m.def("bind_stream(int stream, Tensor input, Tensor output) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(fused_rnn, CPU, m) {
  m.impl("watch_weights", TORCH_BOX(&fused_rnn::watch_weights));
  m.impl("bind_stream", TORCH_BOX(&fused_rnn::bind_stream));
}
