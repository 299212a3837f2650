// Many threads with one model, then with one each; every output is compared with the first one's.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "tvm_mobilenet.h"

int main(int, char** argv) {
  constexpr int kThreads = 4, kRuns = 100;
  std::vector<TmModel*> models(kThreads + 1);
  for (TmModel*& model : models) {
    if (tm_open(argv[1], 1, &model) != TM_OK) return std::puts(tm_error()), 3;
  }
  TmTensor input, output, none;
  tm_input(models[0], 0, &input);
  tm_output(models[0], 0, &output);
  if (tm_input(models[0], 1, &none) != TM_USAGE || tm_error()[0] == '\0') return 1;
  if (tm_run(models[0], nullptr, nullptr) != TM_USAGE) return 1;
  if (tm_api_version() != TM_API_VERSION) return 1;

  const auto run = [&](TmModel* model, int number) {
    // one float further on than malloc's: not aligned, so copied
    std::vector<float> in(input.bytes / 4 + 1, 0.25f * static_cast<float>(number + 1));
    std::vector<float> out(output.bytes / 4);
    const void* inputs[] = {in.data() + number % 2};
    void* outputs[] = {out.data()};
    if (tm_run(model, inputs, outputs) != TM_OK) out.clear();
    return out;
  };
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < kThreads; ++i) expected.push_back(run(models[kThreads], i));

  std::atomic<int> runs{0}, wrong{0};
  for (const bool shared : {true, false}) {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        for (int n = 0; n < kRuns; ++n, ++runs) {
          wrong += run(models[shared ? kThreads : i], i) != expected[i];
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (TmModel* model : models) tm_close(model);
  tm_close(nullptr);
  std::printf("%d runs, %d wrong\n", runs.load(), wrong.load());
  return wrong != 0;
}
