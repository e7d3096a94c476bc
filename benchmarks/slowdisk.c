/* A disk as slow as you say: under LD_PRELOAD each fsync and fdatasync takes at least FSM_SYNC_US microseconds
 * (unset or 0: as long as it takes). What is written to files and how often it is flushed is counted in the file
 * named by FSM_SYNC_COUNTS, three unsigned 64-bit numbers in machine order: flushes, writes, bytes. The counts are
 * shared by all processes that are given the same file, so that a server and its children are counted as one.
 *
 *     gcc -O2 -shared -fPIC -o slowdisk.so slowdisk.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct counts { uint64_t flushes, writes, bytes; };

static struct counts unshared;
static struct counts *counts = &unshared;
static long least_us;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    const char *us = getenv("FSM_SYNC_US"), *path = getenv("FSM_SYNC_COUNTS");
    least_us = us ? atol(us) : 0;
    if (!path) return;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return;
    if (ftruncate(fd, sizeof *counts) == 0) {
        void *map = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map != MAP_FAILED) counts = map;
    }
    close(fd);
}

static struct timespec deadline(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += least_us * 1000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

static int flushed(int result, const struct timespec *until)
{
    static __thread int sharp;
    int kept = errno;
    __atomic_add_fetch(&counts->flushes, 1, __ATOMIC_RELAXED);
    if (least_us > 0) {
        if (!sharp) { prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0); sharp = 1; } /* else each sleep is 50 us too long */
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, until, NULL) == EINTR) continue;
    }
    errno = kept;
    return result;
}

static ssize_t wrote(ssize_t bytes)
{
    if (bytes > 0) {
        __atomic_add_fetch(&counts->writes, 1, __ATOMIC_RELAXED);
        __atomic_add_fetch(&counts->bytes, (uint64_t)bytes, __ATOMIC_RELAXED);
    }
    return bytes;
}

static int is_file(int fd)
{
    struct stat st;
    int kept = errno, yes = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    errno = kept;
    return yes;
}

int fsync(int fd)
{
    REAL(fsync);
    struct timespec until = deadline();
    return flushed(real(fd), &until);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    struct timespec until = deadline();
    return flushed(real(fd), &until);
}

ssize_t write(int fd, const void *from, size_t n)
{
    REAL(write);
    ssize_t bytes = real(fd, from, n);
    return is_file(fd) ? wrote(bytes) : bytes;
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t at)
{
    REAL(pwrite);
    return wrote(real(fd, from, n, at));
}

ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at)
{
    REAL(pwrite64);
    return wrote(real(fd, from, n, at));
}

ssize_t pwritev(int fd, const struct iovec *from, int n, off_t at)
{
    REAL(pwritev);
    return wrote(real(fd, from, n, at));
}

ssize_t pwritev64(int fd, const struct iovec *from, int n, off64_t at)
{
    REAL(pwritev64);
    return wrote(real(fd, from, n, at));
}
