/* Preloaded into every process of a tree that is to be broken: the wall clock, set ahead or back by what a file says.
 *
 *     CHAOS_CLOCK=FILE LD_PRELOAD=./clock.so program
 *
 * The file holds two 64-bit numbers of seconds: the first for every program, the second for Postgres. Whoever writes
 * them sets the clocks at that moment. The steady clock goes on undisturbed, as it does when a real clock is set.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t none[2];
static const volatile int64_t *shift = none;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    const char *name = program_invocation_short_name;
    const int64_t *shifts = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (shifts != MAP_FAILED)
        shift = shifts + (strcmp(name, "postgres") == 0 || strcmp(name, "pg_ctl") == 0);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += *shift;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    (void)zone;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

/* Its deadline is one of our clock; the kernel's is another. */
int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline)
{
    struct timespec theirs = *deadline;
    theirs.tv_sec -= *shift;
    return sem_clockwait(semaphore, CLOCK_REALTIME, &theirs);
}
