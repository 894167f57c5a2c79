/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stands between the engine and the kernel (LD_PRELOAD): counts the calls that replace pages, makes
 * chosen ones fail, holds chosen ones back, and sabotages the engine's method, to show that the
 * tests notice. Steered by the exported functions; until faults_watch() it only passes calls on.
 * Calls go to the kernel directly, so none made here is intercepted again.
 */
/* These definitions are those of the 64-bit names as well. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "faults.h"
#include "kernel_abi.h"

typedef struct Plan {
    uint64_t calls;       /* so far */
    uint64_t first, last; /* calls to fail: first <= number < last, counted from 0 */
    int error;
    bool is_half;  /* they do part of their work all the same */
    uint64_t gate; /* number of the call to hold back */
    bool has_gate;
    unsigned linger_ns;
} Plan;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
typedef struct Poke {
    Point point;
    uint64_t call;
    volatile uint8_t *address;
    uint8_t value;
} Poke;

static Plan plans[POINTS];
static Poke pokes[16];
static unsigned poke_count;
static bool gate_reached, gate_open;
static uintptr_t watched_start, watched_end;
static unsigned sabotage;
static unsigned map_count_limit;
static _Atomic bool is_active;

static bool is_watched(uint64_t address)
{
    return address >= watched_start && address < watched_end;
}

/* Counts the call, waits at its gate, and says with which error it is to fail; 0: it is to be made.
 */
static int pass(Point point, bool *ret_half)
{
    int error = 0;
    pthread_mutex_lock(&lock);
    Plan *plan = &plans[point];
    uint64_t number = plan->calls++;
    if (plan->has_gate && number == plan->gate) {
        gate_reached = true;
        pthread_cond_broadcast(&changed);
        while (!gate_open)
            pthread_cond_wait(&changed, &lock);
    }
    if (number >= plan->first && number < plan->last) {
        error = plan->error;
        if (ret_half)
            *ret_half = plan->is_half;
    }
    for (unsigned i = 0; i < poke_count; i++) {
        if (pokes[i].point == point && pokes[i].call == number)
            *pokes[i].address = pokes[i].value;
    }
    struct timespec pause = {.tv_nsec = plan->linger_ns};
    pthread_mutex_unlock(&lock);
    if (pause.tv_nsec)
        nanosleep(&pause, NULL);
    return error;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

/*
 * Section: steering
 */

void faults_watch(void *start, size_t length_bytes)
{
    watched_start = (uintptr_t)start;
    watched_end = watched_start + length_bytes;
    is_active = true;
}

void faults_reset(void)
{
    pthread_mutex_lock(&lock);
    memset(plans, 0, sizeof plans);
    gate_open = true;
    gate_reached = false;
    sabotage = 0;
    poke_count = 0;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void faults_fail(int point, uint64_t after, uint64_t times, int error, int half)
{
    pthread_mutex_lock(&lock);
    Plan *plan = &plans[point];
    plan->first = plan->calls + after;
    plan->last = plan->first + times;
    plan->error = error;
    plan->is_half = half;
    pthread_mutex_unlock(&lock);
}

uint64_t faults_calls(int point)
{
    pthread_mutex_lock(&lock);
    uint64_t calls = plans[point].calls;
    pthread_mutex_unlock(&lock);
    return calls;
}

void faults_gate(int point, uint64_t after)
{
    pthread_mutex_lock(&lock);
    plans[point].gate = plans[point].calls + after;
    plans[point].has_gate = true;
    gate_reached = gate_open = false;
    pthread_mutex_unlock(&lock);
}

int faults_wait_for_gate(unsigned timeout_seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_seconds;
    pthread_mutex_lock(&lock);
    while (!gate_reached && pthread_cond_timedwait(&changed, &lock, &until) == 0)
        ;
    bool reached = gate_reached;
    pthread_mutex_unlock(&lock);
    return reached;
}

void faults_open_gate(void)
{
    pthread_mutex_lock(&lock);
    gate_open = true;
    for (int i = 0; i < POINTS; i++)
        plans[i].has_gate = false;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void faults_poke(int point, uint64_t after, void *address, int value)
{
    pthread_mutex_lock(&lock);
    pokes[poke_count++ % 16] =
        (Poke){(Point)point, plans[point].calls + after, address, (uint8_t)value};
    pthread_mutex_unlock(&lock);
}

void faults_linger(int point, unsigned ns)
{
    pthread_mutex_lock(&lock);
    plans[point].linger_ns = ns;
    pthread_mutex_unlock(&lock);
}

void faults_sabotage(unsigned what)
{
    sabotage = what;
}

void faults_set_map_count_limit(unsigned limit)
{
    map_count_limit = limit;
}

/*
 * Section: the calls
 */

/* Pages are copied out and stay; going back they are there already. */
static int compare_then_map(int fd, struct msh_uffdio_move *move, bool is_out)
{
    if (!is_out) {
        int result = (int)syscall(SYS_ioctl, fd, MSH_UFFDIO_MOVE, move);
        if (result == 0 || errno != EEXIST)
            return result;
    } else {
        struct uffdio_copy copy = {.dst = move->dst,
                                   .src = move->src,
                                   .len = move->len,
                                   .mode = UFFDIO_COPY_MODE_DONTWAKE};
        if (syscall(SYS_ioctl, fd, UFFDIO_COPY, &copy) < 0)
            return -1;
    }
    move->move = (__s64)move->len;
    return 0;
}

static int call_move(int fd, struct msh_uffdio_move *move)
{
    bool is_out = is_watched(move->src);
    if (!is_out && !is_watched(move->dst))
        return (int)syscall(SYS_ioctl, fd, MSH_UFFDIO_MOVE, move);
    bool is_half = false;
    int error = pass(is_out ? MOVE_OUT : MOVE_IN, &is_half);
    if (error) {
        if (is_half)
            syscall(SYS_ioctl, fd, MSH_UFFDIO_MOVE, move);
        move->move = -error;
        return fail(error);
    }
    if (sabotage & COMPARE_THEN_MAP)
        return compare_then_map(fd, move, is_out);
    return (int)syscall(SYS_ioctl, fd, MSH_UFFDIO_MOVE, move);
}

static int point_of_ioctl(unsigned long request, void *argument)
{
    switch (request) {
    case UFFDIO_REGISTER:
        return is_watched(((struct uffdio_register *)argument)->range.start) ? OPEN_WINDOW
                                                                             : REGISTER_OWN;
    case UFFDIO_COPY:
        return is_watched(((struct uffdio_copy *)argument)->dst)   ? COPY_IN
               : is_watched(((struct uffdio_copy *)argument)->src) ? COPY_OUT
                                                                   : -1;
    case UFFDIO_UNREGISTER:
        return is_watched(((struct uffdio_range *)argument)->start) ? CLOSE_WINDOW : UNREGISTER_OWN;
    case UFFDIO_WAKE:
        return is_watched(((struct uffdio_range *)argument)->start) ? WAKE : -1;
    case UFFDIO_WRITEPROTECT:
        return is_watched(((struct uffdio_writeprotect *)argument)->range.start) ? PROTECT : -1;
    default:
        return -1;
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (is_active && request == MSH_UFFDIO_MOVE)
        return call_move(fd, argument);
    int point = is_active ? point_of_ioctl(request, argument) : -1;
    if (point >= 0) {
        bool is_half = false;
        int error = pass((Point)point, &is_half);
        if (error && is_half)
            syscall(SYS_ioctl, fd, request, argument);
        if (error)
            return fail(error);
        if (point == WAKE && (sabotage & NO_WAKE))
            return 0;
    }
    return (int)syscall(SYS_ioctl, fd, request, argument);
}

void *mremap(void *address, size_t old_bytes, size_t new_bytes, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    void *target = (flags & MREMAP_FIXED) ? va_arg(arguments, void *) : NULL;
    va_end(arguments);
    int point = !is_active                              ? -1
                : target && is_watched((uintptr_t)target) ? MAP_OVER
                : is_watched((uintptr_t)address)          ? MAP_AWAY
                : new_bytes > old_bytes                   ? GROW_OWN
                                                          : -1;
    if (point >= 0) {
        bool is_half = false;
        int error = pass((Point)point, &is_half);
        if (error) {
            if (is_half && point == MAP_OVER)
                syscall(SYS_munmap, target, new_bytes);
            errno = error;
            return MAP_FAILED;
        }
    }
    return (void *)syscall(SYS_mremap, address, old_bytes, new_bytes, flags, target);
}

void *mmap(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset)
{
    /* Only what the engine maps: anonymous memory, on watched addresses or anywhere. */
    bool is_over = is_active && is_watched((uintptr_t)address);
    bool is_own = is_active && !address && fd == -1;
    if (is_over || is_own) {
        int error = pass(is_over ? MAP_FIXED_OVER : MAP_OWN, NULL);
        if (error) {
            errno = error;
            return MAP_FAILED;
        }
    }
    void *mapped = (void *)syscall(SYS_mmap, address, length_bytes, protection, flags, fd, offset);
    if (is_over && mapped != MAP_FAILED && (sabotage & TOUCH_FIXED))
        *(volatile uint8_t *)mapped = 1;
    return mapped;
}

void *mmap64(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

int madvise(void *address, size_t length_bytes, int advice)
{
    if (is_active) {
        int error = pass(is_watched((uintptr_t)address) ? ADVISE : ADVISE_OWN, NULL);
        if (error)
            return fail(error);
    }
    return (int)syscall(SYS_madvise, address, length_bytes, advice);
}

FILE *fopen(const char *path, const char *mode)
{
    if (map_count_limit && strcmp(path, "/proc/sys/vm/max_map_count") == 0) {
        static char text[16];
        snprintf(text, sizeof text, "%u\n", map_count_limit);
        return fmemopen(text, strlen(text), "r");
    }
    FILE *(*real)(const char *, const char *) =
        (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen64");
    return real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) __attribute__((alias("fopen")));
