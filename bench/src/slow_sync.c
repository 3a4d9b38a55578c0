/* Makes every sync of the program that preloads it take longer, by the microseconds in
 * BENCH_SYNC_DELAY_US: a slower disk on any machine. Built by nimbus-bench when it runs. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_for_the_disk(void) {
    const char *delay = getenv("BENCH_SYNC_DELAY_US");
    long us = delay ? atol(delay) : 0;
    struct timespec time = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&time, NULL);
}

int fsync(int fd) {
    wait_for_the_disk();
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    wait_for_the_disk();
    return (int)syscall(SYS_fdatasync, fd);
}
