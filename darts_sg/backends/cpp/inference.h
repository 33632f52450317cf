// A graph in eval mode, without gradients: weights are packed and BatchNorms turned into scale and shift once, and an image
// goes through all steps before the next one, so that what passes between stages stays in the caches.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include <omp.h>

#include "arguments.h"
#include "mixing.h"
#include "stage.h"
#include "stage_forward.h"

namespace {

template <class T>
class Inference {
  int64_t* words_;
  std::vector<const MixArgs*> steps_;
  std::vector<std::unique_ptr<StageKernel<T>>> stages_;  // of all steps, in order

  void run_once() const {
    size_t stage = 0;
    for (const MixArgs* m : steps_) {
      const Mixer<T> mixer(*m);
      for (int64_t o = 0, mixed = 0; o < m->operations; ++o) {
        for (int64_t i = 0; i < m->stages[o]; ++i) stages_[stage++]->forward(true);
        if ((o + 1 - mixed) * m->S < 4 && o + 1 < m->operations) continue;
        mixer.forward(mixed, o + 1);
        mixed = o + 1;
      }
    }
  }

 public:
  // words: the table of a forward pass, which must outlive this; steps: the first words of the steps' MixArgs;
  // first_stage: the first word of the rows of stages. Throws std::bad_alloc.
  Inference(int64_t* words, const int64_t* steps, int64_t num_steps, int64_t first_stage) : words_(words) {
    const StageArgs* stage = reinterpret_cast<const StageArgs*>(words + first_stage);
    for (int64_t i = 0; i < num_steps; ++i) {
      steps_.push_back(reinterpret_cast<const MixArgs*>(words + steps[i]));
      for (int64_t o = 0; o < steps_.back()->operations; ++o)
        for (int64_t j = 0; j < steps_.back()->stages[o]; ++j, ++stage) {
          // the next stage's kernel copies this scale and shift
          finish_statistics<T>(*stage, stage->S * stage->T * stage->Co / stage->packed, nullptr, nullptr);
          stages_.push_back(std::make_unique<StageKernel<T>>(*stage, false));
        }
    }
  }

  // Runs the graph for `chunks` batches. Between two of them the addresses in words `places` move on by `strides` bytes.
  void run(int64_t chunks, const int64_t* places, const int64_t* strides, int64_t num_places) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      run_once();
      for (int64_t i = 0; i < num_places; ++i) words_[places[i]] += strides[i];
    }
  }
};

// Runs several of them at a time, each on a thread of its own and for its own images.
template <class T>
void run_inferences(Inference<T>* const* each, int64_t count, const int64_t* chunks, const int64_t* places,
                    const int64_t* strides, int64_t num_places) {
  if (count == 1) return each[0]->run(chunks[0], places, strides, num_places);
  std::atomic<bool> out_of_memory{false};  // an exception must not leave a parallel region
#pragma omp parallel num_threads(static_cast<int>(count))
  try {
    const int64_t i = omp_get_thread_num();
    each[i]->run(chunks[i], places, strides, num_places);
  } catch (const std::bad_alloc&) {
    out_of_memory = true;
  }
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace
