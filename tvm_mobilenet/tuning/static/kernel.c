/* Runs one kernel once on arguments that are all ones, without TVM's runtime.
 * shapes.h: N_ARGUMENTS and SHAPES, {dimensions, extents...} of each. */
#include <dlpack/dlpack.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#include "shapes.h"

int __tvm_ffi_main(void* self, const TVMFFIAny* args, int32_t n, TVMFFIAny* result);

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t n) {
  (void)kind, (void)parts, (void)n;
  abort();
}

int main(void) {
  static int64_t shapes[N_ARGUMENTS][8] = SHAPES;
  DLTensor tensors[N_ARGUMENTS];
  TVMFFIAny args[N_ARGUMENTS], result;
  memset(tensors, 0, sizeof tensors);
  memset(args, 0, sizeof args);
  memset(&result, 0, sizeof result);
  for (int i = 0; i < N_ARGUMENTS; ++i) {
    size_t size = 1;
    for (int64_t d = 0; d < shapes[i][0]; ++d) size *= shapes[i][1 + d];
    float* data;
    if (posix_memalign((void**)&data, 64, 4 * size + 64)) return 1;
    for (size_t k = 0; k < size; ++k) data[k] = 1.0f;
    tensors[i].data = data;
    tensors[i].device.device_type = kDLCPU;
    tensors[i].ndim = (int32_t)shapes[i][0];
    tensors[i].dtype = (DLDataType){kDLFloat, 32, 1};
    tensors[i].shape = shapes[i] + 1;
    args[i].type_index = kTVMFFIDLTensorPtr;
    args[i].v_ptr = &tensors[i];
  }
  return __tvm_ffi_main(NULL, args, N_ARGUMENTS, &result) ? 2 : 0;
}
