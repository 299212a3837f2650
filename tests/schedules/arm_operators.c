/* Runs compiled operators on arrays from a file: no TVM runtime. */
#include <dlpack/dlpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

typedef int (*Operator)(void *self, const TVMFFIAny *args, int32_t n, TVMFFIAny *result);
extern const Operator operators[];
extern const int n_operators;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < n; ++i) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static void take(void *data, size_t size, FILE *file) {
  if (fread(data, 1, size, file) != size) {
    fprintf(stderr, "the input ends early\n");
    exit(1);
  }
}

int main(int argc, char **argv) {
  FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
  int runs = argc > 3 ? atoi(argv[3]) : 1;
  if (!in || !out) return 1;
  for (int o = 0; o < n_operators; ++o) {
    int64_t n, shapes[8][8];
    DLTensor tensors[8];
    TVMFFIAny args[8], result;
    size_t size = 0;
    memset(tensors, 0, sizeof tensors);
    memset(args, 0, sizeof args);
    memset(&result, 0, sizeof result);
    take(&n, sizeof n, in);
    for (int64_t i = 0; i < n; ++i) {
      int64_t ndim;
      take(&ndim, sizeof ndim, in);
      take(shapes[i], ndim * sizeof(int64_t), in);
      size = 4;
      for (int64_t d = 0; d < ndim; ++d) size *= shapes[i][d];
      if (posix_memalign(&tensors[i].data, 64, size ? size : 64)) return 1;
      take(tensors[i].data, size, in);
      tensors[i].device.device_type = kDLCPU;
      tensors[i].ndim = ndim;
      tensors[i].dtype.code = kDLFloat;
      tensors[i].dtype.bits = 32;
      tensors[i].dtype.lanes = 1;
      tensors[i].shape = shapes[i];
      args[i].type_index = kTVMFFIDLTensorPtr;
      args[i].v_ptr = &tensors[i];
    }
    for (int r = 0; r < runs; ++r)
      if (operators[o](NULL, args, n, &result)) return 2;
    if (fwrite(tensors[n - 1].data, 1, size, out) != size) return 1;
    for (int64_t i = 0; i < n; ++i) free(tensors[i].data);
  }
  return fclose(out) ? 1 : 0;
}
