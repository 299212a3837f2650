/* Embeds a bundle: prints the best class of a file of raw values (default: of zeros).
 *   example BUNDLE [FILE]        of a cross build, which has its network in it: example - [FILE] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tvm_mobilenet.h"

static int complain(const char* what) {
  fprintf(stderr, "example: %s\n", what);
  return 3;
}

int main(int argc, char** argv) {
  if (argc < 2) return complain("usage: example BUNDLE [FILE]");
  TmModel* model;
  const char* bundle = strcmp(argv[1], "-") == 0 ? NULL : argv[1];
  if (tm_open(bundle, 0, &model) != TM_OK) return complain(tm_error());

  TmTensor input, output;
  if (tm_input_count(model) != 1 || tm_input(model, 0, &input) != TM_OK ||
      tm_output(model, 0, &output) != TM_OK) {
    return complain("takes models with one input");
  }
  printf("%s: %s of %zu bytes\n", input.name, input.dtype, input.bytes);

  float* picture = calloc(1, input.bytes);
  float* scores = calloc(1, output.bytes);
  if (argc > 2) {
    FILE* file = fopen(argv[2], "rb");
    if (file == NULL || fread(picture, 1, input.bytes, file) != input.bytes) {
      return complain("the file is missing or too short");
    }
    fclose(file);
  }

  const void* inputs[] = {picture};
  void* outputs[] = {scores};
  if (tm_run(model, inputs, outputs) != TM_OK) return complain(tm_error());

  size_t best = 0;
  for (size_t i = 1; i < output.bytes / sizeof(float); ++i) {
    if (scores[i] > scores[best]) best = i;
  }
  printf("class %zu, %s %.4f\n", best, output.name, scores[best]);
  free(picture);
  free(scores);
  tm_close(model);
  return 0;
}
