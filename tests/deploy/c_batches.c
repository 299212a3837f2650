/* Runs rows together and one by one: batches BUNDLE|- ROWS. Prints the sizes that were compiled. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tvm_mobilenet.h"

int main(int argc, char** argv) {
  TmModel* model;
  if (argc != 3 || tm_open(strcmp(argv[1], "-") == 0 ? NULL : argv[1], 1, &model) != TM_OK) {
    return fprintf(stderr, "%s\n", tm_error()), 3;
  }
  const int rows = atoi(argv[2]);
  int64_t sizes[8];
  const int count = tm_batches(model, sizes, 8);
  for (int i = 0; i < count; ++i) printf("%d ", (int)sizes[i]);
  TmTensor input, output;
  tm_input(model, 0, &input);
  tm_output(model, 0, &output);
  const size_t in = input.bytes / (size_t)sizes[0], out = output.bytes / (size_t)sizes[0];
  float* pictures = malloc(in * rows);
  float *together = malloc(out * rows), *alone = malloc(out);
  for (size_t i = 0; i < in / sizeof(float) * rows; ++i) pictures[i] = (float)sin(0.1 * (double)i * i);
  const void* inputs[] = {pictures};
  void* outputs[] = {together};
  if (tm_run_batch(model, rows, inputs, outputs) != TM_OK) {
    return fprintf(stderr, "%s\n", tm_error()), 3;
  }
  double most = 0;
  for (int row = 0; row < rows; ++row) {
    inputs[0] = (char*)pictures + in * row;
    outputs[0] = alone;
    if (tm_run(model, inputs, outputs) != TM_OK) return 3;
    for (size_t i = 0; i < out / sizeof(float); ++i) {
      most = fmax(most, fabs(alone[i] - together[row * (out / sizeof(float)) + i]));
    }
  }
  printf("%s\n", most < 1e-5 ? "alike" : "different");
  if (tm_run_batch(model, 0, inputs, outputs) != TM_USAGE) return 1;
  tm_close(model);
  return 0;
}
