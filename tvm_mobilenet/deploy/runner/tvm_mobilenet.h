/* Runs a bundle from C or C++: open, input info, run, output, close.
 *
 * Every function that returns int gives TM_OK or an error code, and tm_error() the reason in one
 * line. Opening a bundle runs its code: open only bundles that you trust.
 *
 * Threads: different models may be used from different threads at the same time. One model may be
 * used from several threads too, whose runs then take turns; open it once for each thread to run
 * side by side. tm_close must be the last call on a model. tm_error is of the calling thread.
 *
 * Stable: within one TM_API_VERSION nothing is removed or changes its meaning. */
#ifndef TVM_MOBILENET_H_
#define TVM_MOBILENET_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TM_API_VERSION 1
#define TM_EXPORT __attribute__((visibility("default")))

enum { TM_OK = 0, TM_USAGE = 2, TM_BAD_INPUT = 3 };

typedef struct TmModel TmModel;

typedef struct TmTensor {
  const char* name;     /* these pointers live as long as the model */
  const char* dtype;    /* "float32" */
  const int64_t* shape; /* ndim numbers; elements lie in C order */
  int32_t ndim;
  size_t bytes;
} TmTensor;

/* The API version of the library, to be compared with TM_API_VERSION. */
TM_EXPORT int tm_api_version(void);

/* Opens the bundle in a directory and compares each of its files with its SHA-256. A library of a
 * cross build has its network in it: bundle is NULL there. threads: how many one run is spread over;
 * 0: as the bundle was built, else one for each usable CPU. *model is NULL after an error. */
TM_EXPORT int tm_open(const char* bundle, int threads, TmModel** model);

TM_EXPORT int tm_input_count(const TmModel* model);
TM_EXPORT int tm_output_count(const TmModel* model);
TM_EXPORT int tm_input(const TmModel* model, int index, TmTensor* info);
TM_EXPORT int tm_output(const TmModel* model, int index, TmTensor* info);

/* Runs once: inputs[i] is read (in place where it is aligned to 64 bytes, else copied first),
 * outputs[i] is written; each has the `bytes` of its TmTensor. */
TM_EXPORT int tm_run(TmModel* model, const void* const* inputs, void* const* outputs);

/* Batch sizes with kernels of their own, of a bundle that was built for several: the first is that of
 * the TmTensors. Writes up to `capacity` of them and returns how many there are. */
TM_EXPORT int tm_batches(const TmModel* model, int64_t* sizes, int capacity);

/* tm_run with another first axis: every input and output has batch / (first size) times its `bytes`.
 * A size without kernels of its own runs in parts; TM_BAD_INPUT for one that is no sum of the above. */
TM_EXPORT int tm_run_batch(TmModel* model, int64_t batch, const void* const* inputs,
                           void* const* outputs);

/* Frees the model; NULL is no error. */
TM_EXPORT void tm_close(TmModel* model);

/* Why the calling thread's last call failed; "" when none did. */
TM_EXPORT const char* tm_error(void);

#ifdef __cplusplus
}
#endif

#endif
