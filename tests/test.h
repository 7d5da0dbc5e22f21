/* test.h - the harness of every test program.

   int main(int argc, char **argv) {
       test_begin(argc, argv);
       TEST(name) { CHECK(1 + 1 == 2); CHECK_EQ(n, 3); CHECK_STR(text, "three"); }
       return test_end();
   }

   A TEST block is one case: it passes when no CHECK in it failed. `break` leaves it early; SKIP("why") counts it as
   skipped. Arguments of the program select cases whose name contains one of them. The last line printed is
   "N passed, N failed" (", N skipped" when there were any), and the exit status is 1 when a case failed. */
#ifndef DS_TEST_H
#define DS_TEST_H
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEST_FN static __attribute__((unused))

typedef struct test_state {
    int argc, passed, failed, skipped, checks_failed;
    char **argv;
    const char *name;
    int running, skip;
} test_state;
static test_state test_;

TEST_FN void test_begin(int argc, char **argv) {
    test_.argc = argc;
    test_.argv = argv;
    setvbuf(stdout, NULL, _IOLBF, 0);
}
TEST_FN void test_close(void) {
    if (!test_.running) return;
    test_.running = 0;
    if (test_.skip)
        test_.skipped++;
    else if (test_.checks_failed) {
        test_.failed++;
        printf("FAIL %s\n", test_.name);
    } else
        test_.passed++;
}
TEST_FN int test_open(const char *name) {
    int chosen = test_.argc < 2;
    test_close(); /* the last case, when it was left by break */
    for (int i = 1; i < test_.argc; i++) chosen |= strstr(name, test_.argv[i]) != NULL;
    test_.name = name;
    test_.checks_failed = test_.skip = 0;
    test_.running = chosen;
    return chosen;
}
TEST_FN int test_end(void) {
    test_close();
    printf("%d passed, %d failed", test_.passed, test_.failed);
    if (test_.skipped) printf(", %d skipped", test_.skipped);
    printf("\n");
    return test_.failed != 0;
}
/* Counts a failed check and says where; returns ok, so that a test can stop at the first. */
__attribute__((format(printf, 4, 5))) TEST_FN int test_check(int ok, const char *file, int line, const char *format,
                                                             ...) {
    va_list args;
    if (ok) return 1;
    if (++test_.checks_failed <= 10) {
        printf("  %s:%d: %s: ", file, line, test_.name ? test_.name : "");
        va_start(args, format);
        vprintf(format, args);
        va_end(args);
        printf("\n");
    }
    return 0;
}
TEST_FN int test_check_eq(long long got, long long expected, const char *file, int line, const char *text) {
    return test_check(got == expected, file, line, "%s: got %lld, expected %lld", text, got, expected);
}
TEST_FN int test_check_near(double got, double expected, double bound, const char *file, int line, const char *text) {
    return test_check(fabs(got - expected) <= bound, file, line, "%s: got %.17g, expected %.17g within %g", text, got,
                      expected, bound);
}
#define TEST(name) for (int test_once_ = test_open(#name); test_once_; test_once_ = 0, test_close())
/* the same with a name made at run time, for cases in a loop */
#define TEST_NAMED(name)        for (int test_once_ = test_open(name); test_once_; test_once_ = 0, test_close())
#define CHECK(condition)        test_check(!!(condition), __FILE__, __LINE__, "%s", #condition)
#define CHECK_EQ(got, expected) test_check_eq((long long)(got), (long long)(expected), __FILE__, __LINE__, #got)
#define CHECK_NEAR(got, expected, bound)                                                                               \
    test_check_near((double)(got), (double)(expected), (double)(bound), __FILE__, __LINE__, #got)
#define CHECK_STR(got, expected)                                                                                       \
    test_check(strcmp((got), (expected)) == 0, __FILE__, __LINE__, "%s: got \"%s\", expected \"%s\"", #got, (got),     \
               (expected))
#define CHECK_HAS(text, part)                                                                                          \
    test_check(strstr((text), (part)) != NULL, __FILE__, __LINE__, "%s: \"%s\" lacks \"%s\"", #text, (text), (part))
#define SKIP(why) (printf("SKIP %s: %s\n", test_.name, (why)), test_.skip = 1)

/* Ends a forked child so that its sanitizer still reports, without running the parent's buffered output again. */
TEST_FN void test_child_exit(int status) {
    fflush(stdout);
    fflush(stderr);
    exit(status);
}

/* A generator for test data: splitmix64, the same on every machine. */
TEST_FN uint64_t test_random(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
TEST_FN double test_uniform(uint64_t *state) {
    return (double)(test_random(state) >> 11) * 0x1p-53;
}

/* An allocator that counts, checks sizes given back, and fails on request. As a ds_allocator: alloc = test_alloc,
   release = test_release, ctx = a test_memory. Not for several threads at once. */
typedef struct test_memory {
    size_t live, peak, calls; /* bytes in use, their high water, allocations so far */
    size_t fail_at;           /* the n-th allocation fails (from 1); 0: none */
    int fail_all;             /* and all after it */
    size_t mismatches;        /* releases whose size or alignment differed */
} test_memory;
typedef struct test_block {
    size_t bytes, align;
} test_block;
TEST_FN void *test_alloc(void *ctx, size_t bytes, size_t align) {
    test_memory *m = (test_memory *)ctx;
    size_t front = align > sizeof(test_block) ? align : sizeof(test_block);
    void *p = NULL;
    m->calls++;
    if (m->fail_at && (m->calls == m->fail_at || (m->fail_all && m->calls > m->fail_at))) return NULL;
    if (posix_memalign(&p, align > sizeof(void *) ? align : sizeof(void *), front + bytes)) return NULL;
    ((test_block *)(void *)((char *)p + front))[-1].bytes = bytes;
    ((test_block *)(void *)((char *)p + front))[-1].align = align;
    m->live += bytes;
    if (m->live > m->peak) m->peak = m->live;
    return (char *)p + front;
}
TEST_FN void test_release(void *ctx, void *memory, size_t bytes, size_t align) {
    test_memory *m = (test_memory *)ctx;
    size_t front = align > sizeof(test_block) ? align : sizeof(test_block);
    test_block *block = (test_block *)memory - 1;
    if (block->bytes != bytes || block->align != align) m->mismatches++;
    m->live -= block->bytes;
    free((char *)memory - front);
}
#endif
