// Measures lower bounds for recurrent kernels on this GPU: launch latency, barriers and data exchange between blocks,
// memory bandwidth and matrix product throughput. Prints one line of JSON per floor as it is measured: name, unit,
// median and quartiles of the repeats; or an error. Every kernel's result is checked. A separate program, so that it
// can be killed if a kernel hangs. For sm_90 and later: half of it is about clusters.
//
//   floors [--rehearse] [WORD]
//     --rehearse   a few steps of each, for sanitizers and for the tests' software GPU
//     WORD         only the floors whose names contain it
#include <cstdio>
#include <functional>
#include <numeric>
#include <string>

#include "host.h"
#include "kernels.cuh"

namespace fused_rnn::cuda {
namespace {

constexpr unsigned kThreads = 256;

struct Effort {
  int steps, repeats;
  size_t copied_bytes, cached_bytes;
};
constexpr Effort kMeasured = {2000, 11, size_t{2} << 30, size_t{24} << 20};
constexpr Effort kRehearsed = {6, 2, size_t{1} << 16, size_t{1} << 18};

// A JSON string's contents.
std::string escaped(std::string text) {
  for (char& c : text)
    if (c == '"' || c == '\\' || (c >= 0 && c < ' ')) c = ' ';
  return text;
}

struct Floors {
  Effort effort;
  std::string word;

  // Per repeat: prepare(), then value(microseconds of run()); right() checks the last result. Unneeded functions may be
  // empty.
  struct Floor {
    std::string name, unit;
    std::function<void()> prepare = {}, run;
    std::function<double(double)> value = {};
    std::function<bool()> right = {};
  };

  bool wants(const std::string& name) const { return name.find(word) != std::string::npos; }

  void measure(const Floor& floor) const {
    std::vector<double> values;
    for (int i = 0; i <= effort.repeats; ++i) {
      if (floor.prepare) floor.prepare();
      const double us = time_us(floor.run);
      if (i > 0) values.push_back(floor.value ? floor.value(us) : us / effort.steps);  // the first is the warm-up
    }
    if (floor.right && !floor.right()) fail("the kernel's result is wrong");
    std::sort(values.begin(), values.end());
    const auto at = [&](double share) { return values[size_t(share * (values.size() - 1) + 0.5)]; };
    std::printf(
        "{\"name\": \"%s\", \"unit\": \"%s\", \"median\": %.5g, \"quartiles\": [%.5g, %.5g], \"repeats\": %d}\n",
        floor.name.c_str(), floor.unit.c_str(), at(0.5), at(0.25), at(0.75), effort.repeats);
    std::fflush(stdout);
  }

  // Runs body(); prints an exception as the line of `name`.
  void guarded(const std::string& name, const std::function<void()>& body) {
    if (!wants(name)) return;
    try {
      body();
    } catch (const std::exception& error) {
      ++failed;
      std::printf("{\"name\": \"%s\", \"error\": \"%s\"}\n", name.c_str(), escaped(error.what()).c_str());
      std::fflush(stdout);
    }
  }

  int failed = 0;
};

std::string joined(const std::string& kind, const char* between, unsigned number) {
  return kind + between + std::to_string(number);
}

Launch together(unsigned blocks, unsigned threads) {
  Launch how = {blocks, threads, nullptr};
  how.cooperative = true;
  return how;
}
Launch cluster_of(unsigned size, unsigned threads, size_t shared_bytes, unsigned clusters = 1) {
  Launch how = {size * clusters, threads, nullptr, shared_bytes};
  how.cluster = size;
  return how;
}

constexpr unsigned kGrids[] = {32, 64, 128}, kClusterSizes[] = {2, 4, 8, 16};

// ---- launches -------------------------------------------------------------------------------------------------------

void launches(Floors& all) {
  const auto each = [&](const std::string& name, const Launch& how) {
    all.guarded(name, [&] {
      all.measure({name, "us", {}, [&] {
                     for (int i = 0; i < all.effort.steps; ++i) launch(how, do_nothing);
                   }});
    });
  };
  const unsigned blocks = multiprocessors();
  each("launch of 1 block", {1, 32, nullptr});
  each("launch of a block for each multiprocessor", {blocks, kThreads, nullptr});
  each("cooperative launch of a block for each multiprocessor", together(blocks, kThreads));
  each("launch of a cluster of 8", cluster_of(8, kThreads, 0));

  const auto replayed = [&](const std::string& name, Launch how) {
    all.guarded(name, [&] {
      constexpr int kCaptured = 100;
      cudaStream_t stream;
      cudaGraph_t graph;
      cudaGraphExec_t ready;
      check_cuda(cudaStreamCreate(&stream), "creating a stream");
      how.stream = stream;
      check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a capture");
      for (int i = 0; i < kCaptured; ++i) launch(how, do_nothing);
      check_cuda(cudaStreamEndCapture(stream, &graph), "ending a capture");
      check_cuda(cudaGraphInstantiate(&ready, graph, 0), "instantiating a graph");
      all.measure({name,
                   "us",
                   {},
                   [&] { check_cuda(cudaGraphLaunch(ready, nullptr), "launching a graph"); },
                   [](double us) { return us / kCaptured; }});
      cudaGraphExecDestroy(ready);
      cudaGraphDestroy(graph);
      cudaStreamDestroy(stream);
    });
  };
  replayed("launch in a graph of 1 block", {1, 32, nullptr});
  replayed("cooperative launch in a graph", together(blocks, kThreads));
}

// ---- grids ----------------------------------------------------------------------------------------------------------

template <class Barrier>
void grid_barrier(Floors& all, const std::string& kind, unsigned blocks) {
  const std::string name = joined("grid barrier by " + kind + ", blocks", " ", blocks);
  all.guarded(name, [&] {
    const int steps = all.effort.steps;
    std::vector<uint32_t> first(2 * blocks);
    std::iota(first.begin(), first.end(), 0u);
    Array<uint32_t> arrived(blocks), numbers(first);
    const auto prepare = [&] {
      arrived.fill(0);
      numbers = first;
    };
    all.measure({name,
                 "us",
                 prepare,
                 [&] { launch(together(blocks, kThreads), meet<Barrier>, arrived.data(), numbers.data(), steps); },
                 {},
                 [&] {
                   const auto last = numbers.values();
                   for (unsigned i = 0; i < blocks; ++i)
                     if (last[steps % 2 * blocks + i] != (i + steps) % blocks) return false;
                   return true;
                 }});
  });
}

void grid_barriers(Floors& all) {
  for (unsigned blocks : kGrids) {
    grid_barrier<CooperativeGroups>(all, "cooperative groups", blocks);
    grid_barrier<Counter>(all, "a counter", blocks);
    grid_barrier<Flags>(all, "flags", blocks);
  }
}

void hops(Floors& all) {
  const int steps = all.effort.steps;
  // The block that receives the last answer has got `steps` or `steps - 1`.
  const auto right = [&](const Array<uint32_t>& out) {
    const auto found = out.values();
    return std::max(found[0], found[1]) == unsigned(steps) && std::min(found[0], found[1]) == unsigned(steps - 1);
  };
  all.guarded("hop through L2, polling for data", [&] {
    Array<Pack<4> > slots(steps);
    Array<uint32_t> out(2);
    all.measure({"hop through L2, polling for data",
                 "us",
                 [&] { slots.fill(0xff); },
                 [&] { launch(together(2, 1), hop_by_data, slots.data(), out.data(), steps); },
                 {},
                 [&] { return right(out); }});
  });
  all.guarded("hop through L2, polling for a flag", [&] {
    Array<Pack<4> > slots(steps);
    Array<uint32_t> flags(2), out(2);
    all.measure({"hop through L2, polling for a flag",
                 "us",
                 [&] { flags.fill(0); },
                 [&] { launch(together(2, 1), hop_by_flag, slots.data(), flags.data(), out.data(), steps); },
                 {},
                 [&] { return right(out); }});
  });
  all.guarded("hop in a cluster, by st.async", [&] {
    Array<uint32_t> out(2);
    all.measure({"hop in a cluster, by st.async",
                 "us",
                 {},
                 [&] { launch(cluster_of(2, 1, 64), hop_by_async_store, out.data(), steps); },
                 {},
                 [&] { return right(out); }});
  });
}

template <int kPacks>
void grid_exchange(Floors& all, unsigned blocks, unsigned nanoseconds) {
  constexpr unsigned kAll = kPacks * kThreads;
  std::string name = joined(joined("grid exchange of KB", " ", kAll / 64), ", blocks ", blocks);
  if (nanoseconds > 0) name = joined(name, ", pause of ns ", nanoseconds);
  all.guarded(name, [&] {
    const int steps = all.effort.steps;
    Array<Pack<4> > slots(size_t(kAll) * steps);
    Array<uint32_t> sums(blocks * kThreads);
    all.measure({name,
                 "us",
                 [&] { slots.fill(0xff); },
                 [&] {
                   launch(together(blocks, kThreads), exchange_by_polling<kPacks>, slots.data(), sums.data(), steps,
                          nanoseconds);
                 },
                 {},
                 [&] {
                   const auto found = sums.values();
                   for (unsigned i = 0; i < blocks * kThreads; ++i) {
                     uint32_t expected = 0;
                     for (int t = 0; t < steps; ++t)
                       for (unsigned k = 0; k < kPacks; ++k)
                         expected += (t * kAll + k * kThreads + i % kThreads) & 0x7fffffffu;
                     if (found[i] != expected) return false;
                   }
                   return true;
                 }});
  });
}

// A slot is H * N * 2 bytes: 8 KB for H = 512, 16 KB for H = 1024, 32 KB for 2048 and a batch of N = 8 in 16 bits.
void grid_exchanges(Floors& all) {
  for (unsigned blocks : kGrids) {
    grid_exchange<2>(all, blocks, 0);
    grid_exchange<4>(all, blocks, 0);
    grid_exchange<8>(all, blocks, 0);
  }
  for (unsigned nanoseconds : {20, 100}) grid_exchange<4>(all, kGrids[1], nanoseconds);
}

// ---- clusters -------------------------------------------------------------------------------------------------------

template <bool kPending>
void cluster_barrier(Floors& all, unsigned size) {
  const char* const kind = kPending ? "cluster barrier after a global store, blocks" : "cluster barrier, blocks";
  const std::string name = joined(kind, " ", size);
  all.guarded(name, [&] {
    const int steps = all.effort.steps;
    Array<Pack<4> > scratch(size * kThreads);
    all.measure({name,
                 "us",
                 {},
                 [&] { launch(cluster_of(size, kThreads, 0), meet_in_cluster<kPending>, scratch.data(), steps); },
                 {},
                 [&] { return scratch.values().back().word[3] == unsigned(steps); }});
  });
}

template <bool kAsync>
void cluster_exchange(Floors& all, unsigned size, unsigned kilobytes) {
  const std::string kind = kAsync ? "st.async" : "plain stores and the barrier";
  const std::string name = joined(joined("cluster exchange by " + kind + " of KB", " ", kilobytes), ", blocks ", size);
  all.guarded(name, [&] {
    const int steps = all.effort.steps;
    const unsigned packs = kilobytes * 64 / size, total = packs * size;
    if (packs > kThreads) fail("a block's slice is ", packs, " packs, more than threads");
    Array<uint32_t> out(total);
    const size_t shared = 2 * sizeof(uint64_t) + 2 * total * sizeof(Pack<4>);
    all.measure({name,
                 "us",
                 {},
                 [&] {
                   launch(cluster_of(size, kThreads, shared), exchange_in_cluster<kAsync>, out.data(), size, packs,
                          steps);
                 },
                 {},
                 [&] {
                   const auto found = out.values();
                   for (unsigned i = 0; i < total; ++i)
                     if (found[i] != (i + steps * packs) % total) return false;
                   return true;
                 }});
  });
}

template <bool kStore>
void remote_bandwidth(Floors& all, unsigned size) {
  constexpr int kPacks = 8;
  const std::string name = joined(kStore ? "DSMEM stores, blocks" : "DSMEM loads, blocks", " ", size);
  all.guarded(name, [&] {
    const int steps = all.effort.steps;
    const unsigned clusters = std::max(1u, multiprocessors() / size / 2), blocks = clusters * size;
    Array<uint32_t> out(blocks * kThreads * (kStore ? kPacks : 1));
    const size_t shared = kPacks * kThreads * sizeof(Pack<4>);
    all.measure({name,
                 "GB/s of a block",
                 {},
                 [&] {
                   const Launch how = cluster_of(size, kThreads, shared, clusters);
                   if constexpr (kStore)
                     launch(how, write_remote<kPacks>, out.data(), size, steps);
                   else
                     launch(how, read_remote<kPacks>, out.data(), size, steps);
                 },
                 [&](double us) { return 1e-3 * shared * steps / us; },
                 [&] {
                   const auto found = out.values();
                   for (unsigned b = 0; b < blocks; ++b) {
                     uint32_t sum = 0;  // of the block's first thread
                     for (unsigned k = 0; k < kPacks; ++k) {
                       sum += (b + 1) % size + k * kThreads;
                       if (kStore && found[(b * kPacks + k) * kThreads] != steps - 1 + k * kThreads) return false;
                     }
                     if (!kStore && found[b * kThreads] != sum * steps) return false;
                   }
                   return true;
                 }});
  });
}

void clusters(Floors& all) {
  for (unsigned size : kClusterSizes) {
    cluster_barrier<false>(all, size);
    cluster_barrier<true>(all, size);
    cluster_exchange<true>(all, size, 8);
    cluster_exchange<false>(all, size, 8);
    remote_bandwidth<false>(all, size);
    remote_bandwidth<true>(all, size);
  }
  cluster_exchange<true>(all, std::end(kClusterSizes)[-1], 4);
  cluster_exchange<true>(all, std::end(kClusterSizes)[-1], 16);

  all.guarded("DSMEM load, one after another", [&] {
    const int steps = all.effort.steps;
    Array<uint32_t> out(2);
    Array<int64_t> cycles(2);
    all.measure({"DSMEM load, one after another",
                 "cycles",
                 {},
                 [&] {
                   launch(cluster_of(2, kThreads, kRing * sizeof(uint32_t)), chase_remote, out.data(), cycles.data(),
                          steps);
                 },
                 [&](double) { return double(cycles.values()[0]) / steps; },
                 [&] {
                   unsigned at = 0;
                   for (int t = 0; t < steps; ++t) at = (5 * at + 7) % kRing;
                   return out.values() == std::vector<uint32_t>{at, at};
                 }});
  });
}

// How many clusters can be resident, of blocks that fill an SM by their registers or by shared memory.
void resident_clusters(Floors& all) {
  const auto ask = [&](const std::string& kind, auto kernel, size_t shared_bytes) {
    for (unsigned size : {1u, 2u, 4u, 8u, 16u}) {
      const std::string name = joined("resident clusters of blocks with " + kind + ", blocks", " ", size);
      all.guarded(name, [&] {
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking");
        check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
                   "asking for shared memory");
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {size, 1, 1};
        cudaLaunchConfig_t config = {};
        config.gridDim = size * 64;
        config.blockDim = kThreads;
        config.dynamicSmemBytes = shared_bytes;
        config.attrs = &attribute;
        config.numAttrs = 1;
        int count = 0;
        check_cuda(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "asking for resident clusters");
        std::printf("{\"name\": \"%s\", \"unit\": \"clusters\", \"median\": %d}\n", name.c_str(), count);
      });
    }
  };
  cudaFuncAttributes found = {};
  check_cuda(cudaFuncGetAttributes(&found, hold_registers), "asking for registers");
  ask(std::to_string(found.numRegs) + " registers", hold_registers, 0);
  ask("200 KB shared", do_nothing, 200 * 1024);
  all.guarded("step of a kernel that fills the registers", [&] {
    const int steps = all.effort.steps;
    const unsigned blocks = multiprocessors();
    Array<uint32_t> out(blocks * kThreads);
    all.measure({"step of a kernel that fills the registers",
                 "us",
                 {},
                 [&] { launch({blocks, kThreads, nullptr}, hold_registers, out.data(), steps); },
                 {},
                 [&] {
                   std::vector<uint32_t> held(kHeld);
                   std::iota(held.begin(), held.end(), blocks * kThreads - 1);  // of the last thread
                   for (int t = 0; t < steps; ++t)
                     for (int i = 0; i < kHeld; ++i) held[i] = 3 * held[i] ^ held[(i + 1) % kHeld];
                   return out.values().back() == std::accumulate(held.begin(), held.end(), 0u);
                 }});
  });
}

// ---- memory ---------------------------------------------------------------------------------------------------------

void read_bandwidth(Floors& all, const std::string& name, const char* unit, unsigned blocks, size_t bytes,
                    bool shared) {
  all.guarded(name, [&] {
    const int steps = all.effort.steps;
    const unsigned packs = unsigned(bytes / sizeof(Pack<4>)) / kThreads * kThreads;
    std::vector<Pack<4> > values(size_t(packs) * (shared ? 1 : blocks));
    for (size_t i = 0; i < values.size(); ++i) values[i].word[0] = uint32_t(i);
    Array<Pack<4> > memory(values);
    Array<uint32_t> sums(blocks * kThreads);
    const size_t stride = shared ? 0 : packs;
    const double read = double(packs) * sizeof(Pack<4>) * blocks * steps;
    all.measure(
        {name,
         unit,
         {},
         [&] { launch({blocks, kThreads, nullptr}, read_again, memory.data(), stride, packs, sums.data(), steps); },
         [&](double us) { return shared ? us / steps : 1e-3 * read / us; },
         [&] {
           const auto found = sums.values();
           for (unsigned b = 0; b < blocks; ++b) {
             uint32_t sum = 0;  // of the block's first thread
             for (unsigned p = 0; p < packs; p += kThreads) sum += uint32_t(b * stride + p);
             if (found[b * kThreads] != sum * steps) return false;
           }
           return true;
         }});
  });
}

void memory_rates(Floors& all) {
  const unsigned most = multiprocessors();
  for (unsigned blocks : kGrids)
    for (unsigned kilobytes : {8, 16, 32, 64})
      read_bandwidth(all, joined(joined("all blocks read the same KB", " ", kilobytes), ", blocks ", blocks), "us",
                     blocks, kilobytes * 1024, true);
  read_bandwidth(all, "L2 read, 1 block a multiprocessor", "GB/s", most, all.effort.cached_bytes / most, false);
  read_bandwidth(all, "L2 read, 4 blocks a multiprocessor", "GB/s", 4 * most, all.effort.cached_bytes / most / 4,
                 false);

  all.guarded("copy in device memory", [&] {
    const size_t bytes = all.effort.copied_bytes;
    Array<unsigned char> from(bytes, 1), to(bytes);
    const auto last = [&] {
      unsigned char byte = 0;
      copy(&byte, to.data() + bytes - 1, 1);
      wait_for_device();
      return byte;
    };
    all.measure({"copy in device memory",
                 "GB/s, read and written",
                 {},
                 [&] { copy(to.data(), from.data(), bytes); },
                 [&](double us) { return 2e-3 * bytes / us; },
                 [&] { return last() == 1; }});
  });
}

// ---- timeouts -------------------------------------------------------------------------------------------------------

// How long after its timeout a wait ends, and whether it is reported to the host.
void vain_waits(Floors& all) {
  const std::string name = "giving up, after its time";
  all.guarded(name, [&] {
    constexpr uint64_t kNanoseconds = 1'000'000;
    constexpr int kStep = 17, kBlocks = 2;
    unsigned long long* report;
    check_cuda(cudaHostAlloc(reinterpret_cast<void**>(&report), sizeof *report, cudaHostAllocMapped), "allocating");
    Array<uint32_t> flag(1), abort_flag(1);
    Array<uint64_t> took(kBlocks);
    void* on_device;
    check_cuda(cudaHostGetDevicePointer(&on_device, report, 0), "asking for the host's memory");
    const Watch watch = {kNanoseconds, static_cast<unsigned long long*>(on_device), abort_flag.data()};
    all.measure({name, "us",
                 [&] {
                   *report = 0;
                   abort_flag.fill(0);
                 },
                 [&] { launch({kBlocks, 32, nullptr}, wait_in_vain, watch, flag.data(), took.data(), kStep); },
                 [&](double) { return 1e-3 * (double(took.values()[0]) - kNanoseconds); },
                 [&] {
                   const Report found = {*static_cast<volatile unsigned long long*>(report)};
                   return found.step() == kStep && found.group() < kBlocks && found.is_back() &&
                          found.blocks() == static_cast<uint64_t>(Blocks::kFlags);
                 }});
    cudaFreeHost(report);
  });
}

// ---- matrix products ------------------------------------------------------------------------------------------------

template <class Kind, int kChains>
void matrix_rate(Floors& all, const std::string& kind, unsigned warps) {
  const std::string name = joined(joined(kind + " of 8 columns, warps", " ", warps), ", chains ", kChains);
  all.guarded(name, [&] {
    const int steps = all.effort.steps;
    const unsigned blocks = multiprocessors();
    Array<float> out(blocks * warps);
    Array<int64_t> cycles(blocks * warps);
    all.measure(
        {name,
         "cycles of a multiprocessor",
         {},
         [&] { launch({blocks, 32 * warps, nullptr}, multiply_ones<Kind, kChains>, out.data(), cycles.data(), steps); },
         [&](double) { return double(cycles.values()[0]) / steps / kChains / warps; },
         [&] {
           const float sum = 4 * kChains * float(Kind::kDepth) * steps + 2 * kChains * (kChains - 1);
           return out.values() == std::vector<float>(blocks * warps, sum);
         }});
  });
}

void matrix_products(Floors& all) {
  for (unsigned warps : {1, 4, 8, 16}) {
    matrix_rate<BFloat16, 1>(all, "mma.m16n8k16 bfloat16", warps);
    matrix_rate<BFloat16, 2>(all, "mma.m16n8k16 bfloat16", warps);
    matrix_rate<BFloat16, 4>(all, "mma.m16n8k16 bfloat16", warps);
    matrix_rate<BFloat16, 8>(all, "mma.m16n8k16 bfloat16", warps);
  }
  matrix_rate<Tf32, 1>(all, "mma.m16n8k8 tf32", 8);
  matrix_rate<Tf32, 4>(all, "mma.m16n8k8 tf32", 8);
}

}  // namespace
}  // namespace fused_rnn::cuda

int main(int count, char** arguments) {
  using namespace fused_rnn::cuda;
  Floors all = {kMeasured, ""};
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--rehearse")
      all.effort = kRehearsed;
    else
      all.word = argument;
  }
  // Most important first, in case the run is stopped early.
  for (auto* group : {hops, grid_exchanges, clusters, grid_barriers, resident_clusters, vain_waits, matrix_products,
                      memory_rates, launches})
    all.guarded(all.word, [&] { group(all); });
  return all.failed > 0;
}
