// QEMU plugin: how often each block of code between two addresses was executed, and the lines that
// its loads and stores bring into two levels of cache (LRU, 64-byte lines, nothing prefetched).
//
// Arguments: out=FILE, begin=, end= (addresses), l1=, l1ways=, l2=, l2ways= (L1 and L2 in KiB; with
// l1=0, which is faster, no lines are counted).
// FILE: "block ADDRESS BYTES COUNT" lines, then "lines L1 L2". For guests with one thread.
//
// QEMU's header is not in Debian's package: these are its declarations (qemu-plugin.h, version 1).
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_RW = 3 };
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb*);
typedef void (*qemu_plugin_vcpu_mem_cb_t)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void*);
typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t, void*);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb*);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn*);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn*);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, enum qemu_plugin_op, void*,
                                              uint64_t);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn*, qemu_plugin_vcpu_mem_cb_t,
                                      enum qemu_plugin_cb_flags, enum qemu_plugin_mem_rw, void*);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, qemu_plugin_udata_cb_t, void*);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { LINE_BITS = 6 };

struct block {
  uint64_t address, bytes, count;
  struct block* next;
};

struct cache {
  uint64_t sets, ways, missed, *tags;  // of a set the latest first; 0: empty
};

static struct block* blocks;
static struct cache l1, l2;
static uint64_t begin, end, l1_kib = 32, l2_kib = 1024, last;
static const char* path;

static void make(struct cache* cache, uint64_t kib) {
  cache->sets = (kib << 10 >> LINE_BITS) / cache->ways;
  cache->tags = calloc(cache->sets * cache->ways, sizeof *cache->tags);
  if (cache->tags == NULL || cache->sets == 0) abort();
}

static bool hit(struct cache* cache, uint64_t line) {
  uint64_t* set = cache->tags + line % cache->sets * cache->ways;
  uint64_t way = 0, tag = line + 1;
  while (way < cache->ways && set[way] != tag) ++way;
  bool found = way < cache->ways;
  if (!found) way = cache->ways - 1;
  memmove(set + 1, set, way * sizeof *set);
  set[0] = tag;
  cache->missed += !found;
  return found;
}

static void touch(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t address, void* data) {
  (void)cpu, (void)data;
  uint64_t line = address >> LINE_BITS;
  uint64_t stop = (address + (1u << qemu_plugin_mem_size_shift(info)) - 1) >> LINE_BITS;
  for (; line <= stop; ++line) {
    if (line == last) continue;  // it is the latest of its set already
    last = line;
    if (!hit(&l1, line)) hit(&l2, line);
  }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
  (void)id;
  uint64_t address = qemu_plugin_tb_vaddr(tb);
  if (address < begin || address >= end) return;
  size_t n = qemu_plugin_tb_n_insns(tb);
  struct qemu_plugin_insn* final = qemu_plugin_tb_get_insn(tb, n - 1);
  uint64_t bytes = qemu_plugin_insn_vaddr(final) + qemu_plugin_insn_size(final) - address;
  struct block* block = blocks;
  while (block != NULL && (block->address != address || block->bytes != bytes)) block = block->next;
  if (block == NULL) {
    block = calloc(1, sizeof *block);
    if (block == NULL) abort();
    *block = (struct block){address, bytes, 0, blocks};
    blocks = block;
  }
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->count, 1);
  for (size_t i = 0; i < n && l1_kib != 0; ++i) {
    qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), touch, QEMU_PLUGIN_CB_NO_REGS,
                                     QEMU_PLUGIN_MEM_RW, NULL);
  }
}

static void ended(qemu_plugin_id_t id, void* data) {
  (void)id, (void)data;
  FILE* file = fopen(path, "w");
  if (file == NULL) return;  // the reader misses the file
  for (struct block* b = blocks; b != NULL; b = b->next)
    fprintf(file, "block %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", b->address, b->bytes, b->count);
  fprintf(file, "lines %" PRIu64 " %" PRIu64 "\n", l1.missed, l2.missed);
  fclose(file);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int argc, char** argv) {
  (void)info;
  l1.ways = 4, l2.ways = 16;
  for (int i = 0; i < argc; ++i) {
    char* value = strchr(argv[i], '=');
    if (value == NULL) return 1;
    *value++ = 0;
    uint64_t number = strtoull(value, NULL, 0);
    if (strcmp(argv[i], "out") == 0) path = strdup(value);
    else if (strcmp(argv[i], "begin") == 0) begin = number;
    else if (strcmp(argv[i], "end") == 0) end = number;
    else if (strcmp(argv[i], "l1") == 0) l1_kib = number;
    else if (strcmp(argv[i], "l1ways") == 0) l1.ways = number;
    else if (strcmp(argv[i], "l2") == 0) l2_kib = number;
    else if (strcmp(argv[i], "l2ways") == 0) l2.ways = number;
    else return 1;
  }
  if (path == NULL || l1.ways == 0 || l2.ways == 0) return 1;
  if (l1_kib != 0) make(&l1, l1_kib), make(&l2, l2_kib);
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
