/* What XNNPACK measures of its operators inside an ExecuTorch program, and what the machine can do.
 *
 * Preloaded, so that the delegate's calls of xnn_create_runtime_v4 and xnn_invoke_runtime come here:
 * the first asks for XNNPACK's own profile, which the extension's build leaves out, the second reads
 * it. With one thread its clock is that of the thread, which stands still while other processes
 * run. Linux only. See operator_cost.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

/* xnnpack.h */
enum { BASIC_PROFILING = 8, OPERATOR_COUNT = 0, OPERATOR_NAMES = 1, OPERATOR_US = 2 };
enum { MOST_DELEGATES = 256, MOST_THREADS = 64 };
#define MARK UINT64_MAX

typedef void *handle;
static int (*create_runtime)(handle, handle, handle, handle, uint32_t, handle *);
static int (*invoke_runtime)(handle);
static int (*get_info)(handle, int, size_t, void *, size_t *);

static struct {
  handle runtime;
  uint64_t operators;
  char *names;
} delegates[MOST_DELEGATES];
static uint64_t delegate_count;

/* Records of [delegate, begin ns, end ns, ns when it was read, operator us...]; a mark has no
 * operators. */
static uint64_t *records;
static size_t used, room;

/* CLOCK_MONOTONIC, or this thread's. */
static clockid_t used_clock = CLOCK_MONOTONIC;
static _Thread_local int is_measuring;
static int (*system_gettime)(clockid_t, struct timespec *);

int clock_gettime(clockid_t clock, struct timespec *time) {
  if (!system_gettime) system_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  return system_gettime(is_measuring && clock == CLOCK_MONOTONIC ? used_clock : clock, time);
}

static uint64_t now_ns(void) {
  struct timespec time;
  is_measuring = 1;
  clock_gettime(CLOCK_MONOTONIC, &time);
  is_measuring = 0;
  return time.tv_sec * UINT64_C(1000000000) + time.tv_nsec;
}

void profile_by_thread_time(void) { used_clock = CLOCK_THREAD_CPUTIME_ID; }

static uint64_t *append(uint64_t words) {
  if (used + words > room) {
    room = 2 * (used + words);
    records = realloc(records, room * sizeof *records);
    if (!records) abort();
  }
  used += words;
  return records + used - words;
}

/* Find XNNPACK in the extension, which is loaded; 0 if it is there. */
int profile_attach(const char *extension) {
  handle library = dlopen(extension, RTLD_NOW | RTLD_NOLOAD);
  if (!library) return 1;
  create_runtime = dlsym(library, "xnn_create_runtime_v4");
  invoke_runtime = dlsym(library, "xnn_invoke_runtime");
  get_info = dlsym(library, "xnn_get_runtime_profiling_info");
  return !(create_runtime && invoke_runtime && get_info);
}

int xnn_create_runtime_v4(handle graph, handle weights, handle workspace, handle pool,
                          uint32_t flags, handle *runtime) {
  int status = create_runtime(graph, weights, workspace, pool, flags | BASIC_PROFILING, runtime);
  if (status == 0 && delegate_count < MOST_DELEGATES)
    delegates[delegate_count++].runtime = *runtime;
  return status;
}

int xnn_invoke_runtime(handle runtime) {
  uint64_t begin = now_ns();
  is_measuring = 1;
  int status = invoke_runtime(runtime);
  uint64_t end = now_ns(), place = 0;
  size_t size;
  while (place < delegate_count && delegates[place].runtime != runtime) place++;
  if (status != 0 || place == delegate_count) return status;
  uint64_t *count = &delegates[place].operators;
  if (!delegates[place].names) {
    get_info(runtime, OPERATOR_COUNT, sizeof *count, count, &size);
    get_info(runtime, OPERATOR_NAMES, 0, NULL, &size);
    delegates[place].names = malloc(size);
    get_info(runtime, OPERATOR_NAMES, size, delegates[place].names, &size);
  }
  uint64_t *record = append(4 + *count);
  record[0] = place;
  record[1] = begin;
  record[2] = end;
  get_info(runtime, OPERATOR_US, *count * sizeof *record, record + 4, &size);
  record[3] = now_ns();
  return status;
}

void profile_mark(void) {
  uint64_t *record = append(4);
  record[0] = MARK;
  record[1] = record[2] = record[3] = now_ns();
}

void profile_clear(void) { used = 0; }
const uint64_t *profile_records(void) { return records; }
uint64_t profile_words(void) { return used; }
uint64_t profile_delegates(void) { return delegate_count; }
uint64_t profile_operators(uint64_t delegate) { return delegates[delegate].operators; }

const char *profile_name(uint64_t delegate, uint64_t place) {
  const char *name = delegates[delegate].names;
  while (place--) name += strlen(name) + 1;
  return name;
}

/* The machine's limits: the fastest of many short passes, which all threads begin together. */
enum { BUFFER_BYTES = 256 << 20, PASS_BYTES = 8 << 20, PASSES = 256 };
enum { PRODUCTS = 1 << 20, CHAINS = 16 };

static void read_memory(const uint64_t *words) {
  uint64_t sums[32] = {0};
  for (size_t place = 0; place < PASS_BYTES / 8; place += 32)
    for (int lane = 0; lane < 32; lane++) sums[lane] += words[place + lane];
  __asm__ volatile("" : : "r"(sums) : "memory");
}

/* int8 multiply-adds in registers; those of one chain wait for each other, hence many. */
#if defined(__AVX512VNNI__)
enum { LANES = 64 };
typedef __m512i sum;
#define MULTIPLY_ADD(s) (s = _mm512_dpbusd_epi32(s, _mm512_set1_epi8(3), _mm512_set1_epi8(5)))
#define KEEP(s) __asm__ volatile("" : "+v"(s))
#elif defined(__AVXVNNI__)
enum { LANES = 32 };
typedef __m256i sum;
#define MULTIPLY_ADD(s) (s = _mm256_dpbusd_avx_epi32(s, _mm256_set1_epi8(3), _mm256_set1_epi8(5)))
#define KEEP(s) __asm__ volatile("" : "+x"(s))
#elif defined(__ARM_FEATURE_DOTPROD)
enum { LANES = 16 };
typedef int32x4_t sum;
#define MULTIPLY_ADD(s) (s = vdotq_s32(s, vdupq_n_s8(3), vdupq_n_s8(5)))
#define KEEP(s) __asm__ volatile("" : "+w"(s))
#else
enum { LANES = 0 }; /* not known here */
typedef int sum;
#define MULTIPLY_ADD(s) (s += 3)
#define KEEP(s) __asm__ volatile("" : "+r"(s))
#endif

static void multiply(const uint64_t *unused) {
  (void)unused;
  sum sums[CHAINS] = {0};
  for (int step = 0; step < PRODUCTS / CHAINS; step++)
    for (int chain = 0; chain < CHAINS; chain++) {
      MULTIPLY_ADD(sums[chain]);
      KEEP(sums[chain]);
    }
}

typedef struct {
  void (*work)(const uint64_t *);
  char *buffer;
  atomic_int *arrived;
  int threads;
  uint64_t ns[PASSES];
} worker;

static void *run_passes(void *given) {
  worker *own = given;
  for (int pass = 0; pass < PASSES; pass++) {
    atomic_fetch_add(own->arrived, 1);
    while (atomic_load(own->arrived) < own->threads * (pass + 1))
      if (own->threads > 1) sched_yield();
    size_t offset = (size_t)pass * PASS_BYTES % BUFFER_BYTES;
    uint64_t begin = now_ns();
    own->work((const uint64_t *)(own->buffer + offset));
    own->ns[pass] = now_ns() - begin;
  }
  return NULL;
}

/* Nanoseconds of the pass whose slowest thread was the fastest. */
static double fastest_ns(void (*work)(const uint64_t *), int threads) {
  static worker workers[MOST_THREADS];
  pthread_t ids[MOST_THREADS];
  atomic_int arrived = 0;
  for (int thread = 0; thread < threads; thread++) {
    void *buffer;
    if (posix_memalign(&buffer, 2 << 20, BUFFER_BYTES)) abort();
    madvise(buffer, BUFFER_BYTES, MADV_HUGEPAGE);
    memset(buffer, 1, BUFFER_BYTES);
    workers[thread] = (worker){work, buffer, &arrived, threads, {0}};
  }
  for (int thread = 1; thread < threads; thread++)
    pthread_create(&ids[thread], NULL, run_passes, &workers[thread]);
  run_passes(&workers[0]);
  for (int thread = 1; thread < threads; thread++) pthread_join(ids[thread], NULL);
  uint64_t best = UINT64_MAX;
  for (int pass = 0; pass < PASSES; pass++) {
    uint64_t slowest = 0;
    for (int thread = 0; thread < threads; thread++)
      if (workers[thread].ns[pass] > slowest) slowest = workers[thread].ns[pass];
    if (slowest < best) best = slowest;
  }
  for (int thread = 0; thread < threads; thread++) free(workers[thread].buffer);
  return best;
}

/* Bytes read from memory in a nanosecond. */
double machine_read_gb_per_s(int threads) {
  return (double)PASS_BYTES * threads / fastest_ns(read_memory, threads);
}

/* int8 multiply-adds in a nanosecond; 0 where this processor's instructions are not known here. */
double machine_int8_gmac_per_s(int threads) {
  return (double)LANES * PRODUCTS * threads / fastest_ns(multiply, threads);
}
