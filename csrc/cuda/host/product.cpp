#include "cuda/host/product.h"

#include <torch/csrc/stable/ops.h>

#include <array>

namespace fused_rnn::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

ScalarType scalar_type(Dtype dtype, Format format) {
  switch (dtype) {
    case Dtype::kDouble:
      return ScalarType::Double;
    case Dtype::kBFloat16:
      return format == Format::kStorage ? ScalarType::BFloat16 : ScalarType::Float;
    case Dtype::kHalf:
      return format == Format::kStorage ? ScalarType::Half : ScalarType::Float;
    default:
      return ScalarType::Float;
  }
}

Tensor view(const Machine& machine, const void* data, ScalarType type, std::array<int64_t, 3> sizes,
            std::array<int64_t, 3> strides) {
  return torch::stable::from_blob(const_cast<void*>(data), {sizes.data(), 3}, {strides.data(), 3}, machine.device,
                                  type);
}

template <class... Arguments>
void call(const char* operation, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(operation, overload, stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // releases the returned handle
}

}  // namespace

Product::Product(const Machine& machine, Dtype dtype, const Sizes& sizes, const Matrices& a, const Matrices& b,
                 const Result& result)
    : sizes_(sizes),
      a_(view(machine, a.data, scalar_type(dtype, Format::kStorage), {sizes.batch, sizes.rows, sizes.depth},
              {a.batch_stride, a.row_stride, a.column_stride})),
      b_(view(machine, b.data, scalar_type(dtype, Format::kStorage), {sizes.batch, sizes.depth, sizes.columns},
              {b.batch_stride, b.row_stride, b.column_stride})),
      result_(view(machine, result.data, scalar_type(dtype, result.format), {sizes.batch, sizes.rows, sizes.columns},
                   {result.batch_stride, result.row_stride, 1})) {}

void Product::run() {
  if (sizes_.batch == 0 || sizes_.rows == 0 || sizes_.columns == 0) return;
  if (sizes_.depth == 0) {
    torch::stable::zero_(result_);
  } else if (a_.scalar_type() == result_.scalar_type()) {
    call("aten::bmm", "out", a_, b_, result_);
  } else if (!a_.is_cpu()) {
    call("aten::bmm", "dtype_out", a_, b_, result_.scalar_type(), result_);
  } else {  // torch's CPU bmm has no float output for 16-bit operands
    const ScalarType wide = result_.scalar_type();
    call("aten::bmm", "out", torch::stable::to(a_, wide), torch::stable::to(b_, wide), result_);
  }
}

}  // namespace fused_rnn::cuda
