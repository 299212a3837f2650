// Count the instructions that a program executes between two SIGSTOPs that it raises in itself, by
// stepping through its first thread one instruction at a time (ptrace). x86-64 Linux.
//
//   singlestep ENTRIES COMMAND [ARGUMENT...]
//
// ENTRIES: a file that COMMAND writes before its first SIGSTOP, one function's address a line. For
// each call of such a function, "INDEX COUNT" goes to stdout when it returns: INDEX the line of its
// address, COUNT the instructions from its first to its return, all that it calls included. Once,
// "pace SECONDS" says what a step takes. At the second SIGSTOP "total COUNT" follows, and COMMAND
// is killed. Both programs run on one CPU, between which every step switches.
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FORBIDDEN = 3, FAILED = 1, MOST_ENTRIES = 4096, PACE_STEPS = 5000 };

static uint64_t entries[MOST_ENTRIES];
static int known;

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  return FORBIDDEN;
}

static int read_entries(const char* path) {
  FILE* file = fopen(path, "r");
  unsigned long long entry;
  if (file == NULL) return 0;
  while (known < MOST_ENTRIES && fscanf(file, "%llx", &entry) == 1) entries[known++] = entry;
  fclose(file);
  return known > 0;
}

static int entered(uint64_t address) {
  for (int i = 0; i < known; ++i)
    if (entries[i] == address) return i;
  return -1;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

int main(int count, char** words) {
  if (count < 3) return FAILED;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(sched_getcpu(), &here);
  sched_setaffinity(0, sizeof here, &here);  // refused: slower, and as right
  pid_t child = fork();
  if (child < 0) return failed("fork");
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(failed("ptrace"));
    execvp(words[2], words + 2);
    _exit(FAILED);
  }

  struct user_regs_struct now = {0};
  uint64_t total = 0, begin = 0, outer_stack = 0, before = 0;
  double start = 0;
  long stepping = 0;  // steps so far, from 1
  int current = -1, status;
  for (;;) {
    if (waitpid(child, &status, 0) != child) return failed("waitpid");
    if (WIFEXITED(status)) return WEXITSTATUS(status) ? WEXITSTATUS(status) : FAILED;
    if (WIFSIGNALED(status)) return FAILED;
    int deliver = WSTOPSIG(status);
    if (deliver == SIGSTOP) {
      if (stepping) break;
      if (!read_entries(words[1])) return FAILED;
      stepping = 1, deliver = 0, start = seconds();
    } else if (deliver == SIGTRAP) {
      deliver = 0;
      if (!stepping && ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_EXITKILL) != 0)
        return failed("ptrace");
    }
    if (stepping) {
      if (ptrace(PTRACE_GETREGS, child, NULL, &now) != 0) return failed("ptrace");
      total += now.rip != before;  // a string instruction traps once for every repetition
      before = now.rip;
      if (stepping++ == PACE_STEPS) {
        printf("pace %g\n", (seconds() - start) / PACE_STEPS);
        fflush(stdout);
      }
      // `total` now includes the instruction at rip, which is next
      if (current < 0) {
        if ((current = entered(now.rip)) >= 0) begin = total, outer_stack = now.rsp;
      } else if (now.rsp > outer_stack) {  // its return has popped the address
        printf("%d %llu\n", current, (unsigned long long)(total - begin));
        fflush(stdout);
        current = -1;
      }
    }
    if (ptrace(stepping ? PTRACE_SINGLESTEP : PTRACE_CONT, child, NULL, (long)deliver) != 0)
      return failed("ptrace");
  }
  printf("total %llu\n", (unsigned long long)total);
  kill(child, SIGKILL);
  return 0;
}
