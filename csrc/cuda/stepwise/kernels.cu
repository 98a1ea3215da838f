// Every instantiation of the stepwise engine's kernels, by cell and dtype, but for those of plug-ins (plug_in.cu).
#include <algorithm>

#include "core/dispatch.h"
#include "core/registry.h"
#include "cuda/stepwise/matrices.cuh"
#include "cuda/stepwise/norm.cuh"
#include "cuda/stepwise/of_cell.cuh"
#include "cuda/stepwise/own_cells.h"
#include "cuda/stepwise/tokens.cuh"

namespace fused_rnn::cuda {
namespace {

template <class F>
void dispatch(Dtype dtype, F f) {
  dispatch_dtype<BFloat16, Half>(dtype, [&](auto s) { f(s); });
}
// f(Type<To>, Type<From>)
template <class F>
void dispatch(Dtype dtype, Format to, Format from, F f) {
  dispatch(dtype, [&](auto s) {
    using S = typename decltype(s)::type;
    const Type<Arithmetic<S>> arithmetic;
    if (to == Format::kStorage && from == Format::kStorage) return f(s, s);
    if (to == Format::kStorage) return f(s, arithmetic);
    if (from == Format::kStorage) return f(arithmetic, s);
    f(arithmetic, arithmetic);
  });
}

// A block for each row of a step and each problem, and for each of `parts`.
Launch one_block_each(const Layer& layer, int64_t rows, unsigned parts, void* stream) {
  const size_t size = layer.dtype == Dtype::kDouble ? sizeof(double) : sizeof(float);
  const auto q = static_cast<unsigned>(std::min<int64_t>(problems(layer), 65535));
  return {dim3(static_cast<unsigned>(rows), q, parts), kNormedThreads, stream, kNormedThreads * size};
}

}  // namespace

const CellLaunches& launches_of(int64_t cell, Dtype dtype) {
  if (is_own(cell)) return launches_of_own(cell, dtype);
  const CellLaunches* found = nullptr;
  dispatch_cell(cell, [&](auto c) {
    dispatch(dtype, [&](auto s) { found = &kLaunches<typename decltype(c)::type, typename decltype(s)::type>; });
  });
  return *found;
}

void launch_forward_projection(const Forward& f, const Step& step, const ForwardArrays& a, void* stream) {
  dispatch(f.dtype, [&](auto s) {
    launch(one_thread_each(f.output_size, step.rows, problems(f), stream),
           forward_projection<typename decltype(s)::type>, f, step, a, traits_of_any(f.cell).saved);
  });
}

void launch_normalise(const Forward& f, const Step& step, const ForwardArrays& a, bool starts_at_zero, void* stream) {
  const CellTraits cell = traits_of_any(f.cell);
  dispatch(f.dtype, [&](auto s) {
    launch(one_block_each(f, step.rows, cell.recurrent ? 2 : 1, stream), normalise<typename decltype(s)::type>, f, step,
           a, cell, starts_at_zero);
  });
}

void launch_normed_h(const Forward& f, const Step& step, const ForwardArrays& a, void* stream) {
  dispatch(f.dtype, [&](auto s) {
    launch(one_block_each(f, step.rows, 1, stream), normed_h<typename decltype(s)::type>, f, step, a,
           traits_of_any(f.cell));
  });
}

void launch_to_normed_c(const Backward& g, const Step& step, const BackwardArrays& a, int output_gate, void* stream) {
  dispatch(g.dtype, [&](auto s) {
    launch(one_block_each(g, step.rows, 1, stream), to_normed_c<typename decltype(s)::type>, g, step, a,
           traits_of_any(g.cell), output_gate);
  });
}

void launch_through_norm(const Backward& g, const Step& step, const BackwardArrays& a, void* stream) {
  const CellTraits cell = traits_of_any(g.cell);
  dispatch(g.dtype, [&](auto s) {
    launch(one_block_each(g, step.rows, cell.recurrent ? 2 : 1, stream), through_norm<typename decltype(s)::type>, g,
           step, a, cell);
  });
}

void launch_backward_projection(const Backward& g, const Step& step, const BackwardArrays& a, void* stream) {
  dispatch(g.dtype, [&](auto s) {
    launch(one_thread_each(g.output_size, step.rows, problems(g), stream),
           backward_projection<typename decltype(s)::type>, g, step, a, traits_of_any(g.cell).saved);
  });
}

void launch_backward_end(const Backward& g, const BackwardArrays& a, void* stream) {
  const int64_t further = (traits_of_any(g.cell).states - 1) * g.hidden;
  dispatch(g.dtype, [&](auto s) {
    launch(one_thread_each(std::max(further, g.output_size), g.batch, problems(g), stream),
           backward_end<typename decltype(s)::type>, g, a, further);
  });
}

void launch_norms(const Backward& g, const Step& step, const BackwardArrays& a, void* stream) {
  const int64_t states = traits_of_any(g.cell).states;
  const dim3 grid(static_cast<unsigned>(problems(g)), static_cast<unsigned>(states));
  const auto run = [&](auto kernel, size_t size) {
    launch({grid, kNormThreads, stream, kNormThreads * size}, kernel, g, step, a, states);
  };
  g.dtype == Dtype::kDouble ? run(norms<double>, sizeof(double)) : run(norms<float>, sizeof(float));
}

void launch_copy(Dtype dtype, const Copy& c, void* stream) {
  dispatch(dtype, c.to_format, c.from_format, [&](auto to, auto from) {
    launch(one_thread_each(c.columns, c.rows, 1, stream),
           copy<typename decltype(to)::type, typename decltype(from)::type>, c);
  });
}

void launch_mask(Dtype dtype, const Mask& m, void* stream) {
  dispatch(dtype, [&](auto s) { launch(one_thread_each(m.count, 1, 1, stream), mask<typename decltype(s)::type>, m); });
}

void launch_gather(const Backward& g, const Gather& c, void* stream) {
  dispatch(g.dtype, [&](auto s) {
    launch(one_thread_each(c.columns, g.rows, c.members, stream), gather<typename decltype(s)::type>, g, c);
  });
}

void launch_sum_rows(Dtype dtype, const SumRows& c, void* stream) {
  dispatch(dtype, [&](auto s) {
    using S = typename decltype(s)::type;
    using T = Arithmetic<S>;
    launch(one_thread_each(c.columns, c.pieces, c.members * c.groups, stream),
           c.to_format == Format::kStorage ? sum_rows<S, T> : sum_rows<T, S>, c);
  });
}

void launch_look_up(const Forward& f, const LookUp& l, void* stream) {
  dispatch(f.dtype, [&](auto s) {
    launch(one_thread_each(l.gate_rows, l.rows, f.members, stream), look_up<typename decltype(s)::type>, f, l);
  });
}

void launch_sum_by_token(const Backward& g, const SumByToken& sum, void* stream) {
  dispatch(g.dtype, [&](auto s) {
    launch(one_thread_each(sum.gate_rows, kShares, g.members * g.weight_groups, stream),
           sum_by_token<typename decltype(s)::type>, g, sum);
  });
}

void launch_transpose(Dtype dtype, const Transpose& t, void* stream) {
  dispatch(dtype, [&](auto s) {
    launch(one_thread_each(t.rows, t.columns, t.count, stream), transpose<typename decltype(s)::type>, t);
  });
}

}  // namespace fused_rnn::cuda
