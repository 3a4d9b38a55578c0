/* The disk recorder of the power-loss suite: an LD_PRELOAD library that writes down every change a
 * process makes below one directory, with the data, and can make the Nth such call fail.
 *
 * It must not know Nimbus, SQLite or redb, nor judge what it sees: tests/src/power/ does.
 *
 *   RECORDER_ROOT   absolute path of the directory, without symbolic links
 *   RECORDER_LOG    the log, outside of it; appended to
 *   RECORDER_DELAY  microseconds that every sync takes longer, as it would on a real disk
 *   RECORDER_FAULT  <calls>:<nth>:<error>:<times>, for example sync:3:EIO:1
 *                   calls  read, write, truncate, sync, name (rename, unlink, link, mkdir, rmdir),
 *                          open (with O_CREAT), any (all but read)
 *                   nth    counted from 1, over the calls of that kind below the root
 *                   error  EIO, ENOSPC, EINTR, SHORT (half of the bytes; for calls without bytes EIO)
 *                   times  how many calls fail from the nth on; 0 for ever
 *
 * A log record is one append, so that other processes may append marks of their own:
 *   u32 length of all that follows, u8 kind, u64 serial, u64 file, u64 a, u64 b, payload
 * with integers big-endian. The serial counts the records of one process from 1. A file is a
 * number given to an inode when it is created or first seen; a number is never used for two files.
 *
 * Each call that changes something runs under one mutex together with its record, so the order of
 * the log is the order of the changes. Syncs run outside of it: their record comes when they are
 * done and names the serial at which they began, which is as far as they can be relied on.
 *
 * SQLite's shared-memory file (-shm) is mapped, needs no durability and is rebuilt after a crash:
 * its name is recorded, its content is not. Any other shared writable mapping below the root is
 * recorded as a violation, as is every change that this file has no model of. */

#define _GNU_SOURCE
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    START = 1, /* a: process id */
    CREATE,    /* file, payload: path */
    OPEN,      /* file, payload: path; a file that was there before the recorder */
    WRITE,     /* file, a: offset, payload: the bytes */
    TRUNCATE,  /* file, a: length */
    ALLOCATE,  /* file, a: offset, b: length; grows the file, changes no byte */
    SYNC,      /* file, a: serial at its begin */
    SYNC_FAILED,
    SYNC_DIR,  /* a: serial at its begin, payload: path */
    RENAME,    /* payload: from NUL to */
    UNLINK,    /* payload: path */
    MKDIR,     /* payload: path */
    RMDIR,     /* payload: path */
    LINK,      /* payload: from NUL to */
    VIOLATION, /* payload: text */
    MARK,      /* written by tests, never here */
    FAULT,     /* payload: text; an injected failure happened */
    COUNTS,    /* payload: text; calls by kind, at a regular exit */
};

enum call { C_READ, C_WRITE, C_TRUNCATE, C_SYNC, C_NAME, C_OPEN, C_ANY, CALLS };
static const char *const CALL_NAMES[CALLS] = {"read", "write", "truncate", "sync",
                                              "name", "open",  "any"};

/* What is known of an inode below the root. */
struct file {
    dev_t dev;
    ino_t ino;
    uint64_t id;
    int quiet; /* content not recorded */
    char path[PATH_MAX];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_len;
static int log_fd = -1;
static uint64_t serial;
static uint64_t next_id = 1;
static struct file **files;
static size_t file_count;
static uint64_t counts[CALLS];

static unsigned delay;

static enum call fault_call = CALLS;
static uint64_t fault_nth;
static uint64_t fault_times;
static uint64_t fault_seen;
static int fault_errno;
static int fault_short;

/* Nothing sensible can be done when the log fails: the run is worthless. */
static void die(const char *what) {
    char text[256];
    int n = snprintf(text, sizeof text, "recorder: %s: %s\n", what, strerror(errno));
    syscall(SYS_write, 2, text, n);
    abort();
}

/* ---- the log ------------------------------------------------------------------------------ */

struct __attribute__((packed)) header {
    uint32_t length;
    uint8_t kind;
    uint64_t serial, file, a, b;
};

static void record_parts(enum kind kind, uint64_t file, uint64_t a, uint64_t b,
                         const struct iovec *parts, int count) {
    struct header h;
    struct iovec all[1 + 64];
    size_t length = sizeof h - sizeof h.length;
    for (int i = 0; i < count; i++) {
        all[1 + i] = parts[i];
        length += parts[i].iov_len;
    }
    h.length = htobe32((uint32_t)length);
    h.kind = (uint8_t)kind;
    h.serial = htobe64(++serial);
    h.file = htobe64(file);
    h.a = htobe64(a);
    h.b = htobe64(b);
    all[0].iov_base = &h;
    all[0].iov_len = sizeof h;
    ssize_t written = syscall(SYS_writev, log_fd, all, 1 + count);
    if (written != (ssize_t)(length + sizeof h.length))
        die("cannot append to the log");
}

static void record(enum kind kind, uint64_t file, uint64_t a, uint64_t b, const void *data,
                   size_t len) {
    struct iovec part = {(void *)data, len};
    record_parts(kind, file, a, b, &part, len > 0 ? 1 : 0);
}

static void record_text(enum kind kind, const char *text) {
    record(kind, 0, 0, 0, text, strlen(text));
}

static void record_two(enum kind kind, const char *from, const char *to) {
    struct iovec parts[2] = {{(void *)from, strlen(from) + 1}, {(void *)to, strlen(to)}};
    record_parts(kind, 0, 0, 0, parts, 2);
}

static void violation(const char *what, const char *path) {
    char text[PATH_MAX + 128];
    snprintf(text, sizeof text, "%s: %s", what, path);
    record_text(VIOLATION, text);
}

/* ---- start and end ------------------------------------------------------------------------ */

static void parse_fault(const char *spec) {
    char call[16], error[16];
    unsigned long long nth, times;
    if (sscanf(spec, "%15[a-z]:%llu:%15[A-Z]:%llu", call, &nth, error, &times) != 4) {
        errno = EINVAL;
        die("RECORDER_FAULT is not <calls>:<nth>:<error>:<times>");
    }
    for (int i = 0; i < CALLS; i++)
        if (strcmp(call, CALL_NAMES[i]) == 0)
            fault_call = (enum call)i;
    fault_short = strcmp(error, "SHORT") == 0;
    fault_errno = strcmp(error, "ENOSPC") == 0  ? ENOSPC
                  : strcmp(error, "EINTR") == 0 ? EINTR
                                                : EIO;
    fault_nth = nth;
    fault_times = times;
    if (fault_call == CALLS || nth == 0) {
        errno = EINVAL;
        die("RECORDER_FAULT names no calls");
    }
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("RECORDER_ROOT"), *log = getenv("RECORDER_LOG");
    if (!dir || !log)
        return;
    root_len = strlen(dir);
    if (root_len == 0 || root_len >= sizeof root || dir[0] != '/')
        die("RECORDER_ROOT is not an absolute path");
    memcpy(root, dir, root_len + 1);
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC,
                          0600);
    if (log_fd < 0)
        die("cannot open RECORDER_LOG");
    const char *slow = getenv("RECORDER_DELAY"), *fault = getenv("RECORDER_FAULT");
    delay = slow ? (unsigned)atoi(slow) : 0;
    if (fault && *fault)
        parse_fault(fault);
    record(START, 0, (uint64_t)getpid(), 0, NULL, 0);
}

__attribute__((destructor)) static void end(void) {
    if (log_fd < 0)
        return;
    char text[512];
    int n = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CALLS; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%s=%llu", i ? " " : "", CALL_NAMES[i],
                      (unsigned long long)counts[i]);
    record_text(COUNTS, text);
    pthread_mutex_unlock(&lock);
}

/* ---- paths and files ---------------------------------------------------------------------- */

/* The part of an absolute path below the root; NULL if it is elsewhere. "" is the root itself. */
static const char *below(const char *path) {
    if (strncmp(path, root, root_len) != 0)
        return NULL;
    if (path[root_len] == 0)
        return path + root_len;
    return path[root_len] == '/' ? path + root_len + 1 : NULL;
}

/* Writes the absolute path of a name whose directory exists, without symbolic links before the
 * last component, into `out`; returns the part below the root or NULL. Keeps errno. */
static const char *resolve(int dirfd, const char *path, char out[PATH_MAX]) {
    int saved = errno;
    char joined[PATH_MAX], real[PATH_MAX];
    const char *result = NULL;
    if (log_fd < 0 || path == NULL)
        return NULL;
    if (path[0] == '/' || dirfd == AT_FDCWD) {
        if (snprintf(joined, sizeof joined, "%s", path) >= (int)sizeof joined)
            return NULL;
    } else {
        char link[64], base[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0)
            goto out;
        base[n] = 0;
        if (snprintf(joined, sizeof joined, "%s/%s", base, path) >= (int)sizeof joined)
            goto out;
    }
    size_t len = strlen(joined);
    while (len > 1 && joined[len - 1] == '/')
        joined[--len] = 0;
    char *slash = strrchr(joined, '/');
    const char *name = slash ? slash + 1 : joined;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || *name == 0) {
        if (!realpath(joined, out))
            goto out;
        result = below(out);
        goto out;
    }
    if (slash == joined) {
        strcpy(real, "/");
    } else {
        if (slash)
            *slash = 0;
        if (!realpath(slash ? joined : ".", real))
            goto out;
    }
    if (snprintf(out, PATH_MAX, "%s%s%s", real, strcmp(real, "/") ? "/" : "", name) >= PATH_MAX)
        goto out;
    result = below(out);
out:
    errno = saved;
    return result;
}

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static struct file *lookup(const struct stat *s) {
    for (size_t i = 0; i < file_count; i++)
        if (files[i]->ino == s->st_ino && files[i]->dev == s->st_dev)
            return files[i];
    return NULL;
}

/* Enters an inode, replacing the one that had its number before, and records it. */
static struct file *enter(const struct stat *s, const char *path, enum kind kind) {
    struct file *f = lookup(s);
    if (!f) {
        struct file **more = realloc(files, (file_count + 1) * sizeof *files);
        f = calloc(1, sizeof *f);
        if (!more || !f)
            die("out of memory");
        files = more;
        files[file_count++] = f;
        f->dev = s->st_dev;
        f->ino = s->st_ino;
    }
    f->id = next_id++;
    f->quiet = ends_with(path, "-shm");
    snprintf(f->path, sizeof f->path, "%s", path);
    record(kind, f->id, 0, 0, path, strlen(path));
    return f;
}

/* The regular file below the root that a descriptor has open, or NULL. Under the lock. */
static struct file *of(int fd) {
    struct stat s;
    int saved = errno;
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        errno = saved;
        return NULL;
    }
    struct file *f = lookup(&s);
    if (!f) {
        char link[64], path[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path - 1);
        if (n > 0) {
            path[n] = 0;
            const char *rel = below(path);
            if (rel)
                f = enter(&s, rel, OPEN);
        }
    }
    errno = saved;
    return f;
}

/* The directory below the root (or the root) that a descriptor has open, or NULL. */
static const char *directory_of(int fd, char path[PATH_MAX]) {
    struct stat s;
    char link[64];
    int saved = errno;
    const char *rel = NULL;
    if (fstat(fd, &s) == 0 && S_ISDIR(s.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, PATH_MAX - 1);
        if (n > 0) {
            path[n] = 0;
            rel = below(path);
        }
    }
    errno = saved;
    return rel;
}

/* ---- faults ------------------------------------------------------------------------------- */

/* Counts a call and decides whether it fails. Under the lock. */
static int faulty(enum call call, const char *path) {
    counts[call]++;
    if (call != C_READ)
        counts[C_ANY]++;
    if (fault_call != call && !(fault_call == C_ANY && call != C_READ))
        return 0;
    uint64_t n = ++fault_seen;
    if (n < fault_nth || (fault_times && n >= fault_nth + fault_times))
        return 0;
    /* Interrupted for ever is a hang by definition: callers try again until it is over. */
    if (fault_errno == EINTR && n >= fault_nth + 100)
        return 0;
    char text[PATH_MAX + 64];
    snprintf(text, sizeof text, "%s %llu: %s", CALL_NAMES[call], (unsigned long long)n, path);
    record_text(FAULT, text);
    return 1;
}

static int fail(void) {
    errno = fault_errno;
    return -1;
}

/* How many of `len` bytes a short call transfers; at least one, so that callers get on. */
static size_t half(size_t len) { return len > 1 ? len / 2 : len; }

/* ---- opening ------------------------------------------------------------------------------ */

static int do_open(int dirfd, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    const char *rel = writes ? resolve(dirfd, path, full) : NULL;
    if (!rel)
        return (int)syscall(SYS_openat, dirfd, path, flags, mode);
    pthread_mutex_lock(&lock);
    if ((flags & O_CREAT) && faulty(C_OPEN, rel)) {
        pthread_mutex_unlock(&lock);
        return fail();
    }
    struct stat s;
    int saved = errno;
    int existed = lstat(full, &s) == 0;
    off_t before = existed ? s.st_size : 0;
    errno = saved;
    int fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
    saved = errno;
    if (fd >= 0 && fstat(fd, &s) == 0 && S_ISREG(s.st_mode)) {
        if (!existed) {
            if (flags & O_TMPFILE & ~O_DIRECTORY)
                violation("O_TMPFILE", rel);
            enter(&s, rel, CREATE);
        } else {
            struct file *f = of(fd);
            if (f && (flags & O_TRUNC) && before > 0)
                record(TRUNCATE, f->id, 0, 0, NULL, 0);
        }
        if (flags & O_DIRECT)
            violation("O_DIRECT", rel);
    }
    errno = saved;
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_of(int flags, va_list args) {
    int needed = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
    return needed ? (mode_t)va_arg(args, int) : 0;
}

#define OPEN_LIKE(name)                                                                            \
    int name(const char *path, int flags, ...) {                                                   \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        return do_open(AT_FDCWD, path, flags, mode);                                               \
    }
#define OPENAT_LIKE(name)                                                                          \
    int name(int dirfd, const char *path, int flags, ...) {                                        \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode_t mode = mode_of(flags, args);                                                        \
        va_end(args);                                                                              \
        return do_open(dirfd, path, flags, mode);                                                  \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)

int creat(const char *path, mode_t mode) {
    return do_open(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* ---- reading ------------------------------------------------------------------------------ */

/* -1 to fail, 0 to go on, 1 to go on with half of the bytes. */
static int before_read(int fd) {
    if (log_fd < 0)
        return 0;
    pthread_mutex_lock(&lock);
    struct file *f = of(fd);
    int hit = f && faulty(C_READ, f->path);
    pthread_mutex_unlock(&lock);
    return !hit ? 0 : fault_short ? 1 : -1;
}

ssize_t read(int fd, void *buf, size_t len) {
    int hit = before_read(fd);
    return hit < 0 ? fail() : syscall(SYS_read, fd, buf, hit ? half(len) : len);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t at) {
    int hit = before_read(fd);
    return hit < 0 ? fail() : syscall(SYS_pread64, fd, buf, hit ? half(len) : len, at);
}
ssize_t pread(int fd, void *buf, size_t len, off_t at) { return pread64(fd, buf, len, at); }

/* ---- writing ------------------------------------------------------------------------------ */

/* Records `len` bytes that were written at `at`, taken from the parts in turn. */
static void wrote(struct file *f, const struct iovec *parts, int count, off_t at, size_t len) {
    if (f->quiet || len == 0)
        return;
    struct iovec cut[64];
    int n = 0;
    if (count > 64) {
        violation("a vectored write with more than 64 parts", f->path);
        return;
    }
    for (int i = 0; i < count && len > 0; i++) {
        cut[n] = parts[i];
        if (cut[n].iov_len > len)
            cut[n].iov_len = len;
        len -= cut[n].iov_len;
        n++;
    }
    record_parts(WRITE, f->id, (uint64_t)at, 0, cut, n);
}

/* `at` is -1 for a write at the file's own position. */
static ssize_t do_write(int fd, const struct iovec *parts, int count, off_t at) {
    struct iovec first;
    if (log_fd < 0)
        goto plain;
    pthread_mutex_lock(&lock);
    struct file *f = of(fd);
    if (!f) {
        pthread_mutex_unlock(&lock);
        goto plain;
    }
    if (faulty(C_WRITE, f->path)) {
        if (!fault_short) {
            pthread_mutex_unlock(&lock);
            return fail();
        }
        first = parts[0];
        first.iov_len = half(first.iov_len);
        parts = &first;
        count = 1;
    }
    off_t where = at;
    if (at < 0) {
        int flags = fcntl(fd, F_GETFL);
        where = lseek(fd, 0, (flags & O_APPEND) ? SEEK_END : SEEK_CUR);
    }
    ssize_t done = at < 0 ? syscall(SYS_writev, fd, parts, count)
                          : syscall(SYS_pwritev, fd, parts, count, at, 0);
    int saved = errno;
    if (done > 0)
        wrote(f, parts, count, where, (size_t)done);
    errno = saved;
    pthread_mutex_unlock(&lock);
    return done;
plain:
    return at < 0 ? syscall(SYS_writev, fd, parts, count)
                  : syscall(SYS_pwritev, fd, parts, count, at, 0);
}

ssize_t write(int fd, const void *buf, size_t len) {
    struct iovec part = {(void *)buf, len};
    return do_write(fd, &part, 1, -1);
}
ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at) {
    struct iovec part = {(void *)buf, len};
    return do_write(fd, &part, 1, at);
}
ssize_t pwrite(int fd, const void *buf, size_t len, off_t at) { return pwrite64(fd, buf, len, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return do_write(fd, parts, count, -1);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return do_write(fd, parts, count, at);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return do_write(fd, parts, count, at);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    (void)flags;
    return do_write(fd, parts, count, at);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    return pwritev64v2(fd, parts, count, at, flags);
}

/* Writes for which there is no model: allowed elsewhere only. */
static void unmodelled(const char *what, int fd) {
    if (log_fd < 0)
        return;
    pthread_mutex_lock(&lock);
    struct file *f = of(fd);
    if (f && !f->quiet)
        violation(what, f->path);
    pthread_mutex_unlock(&lock);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t len,
                        unsigned flags) {
    unmodelled("copy_file_range", out);
    return syscall(SYS_copy_file_range, in, in_at, out, out_at, len, flags);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t len) {
    unmodelled("sendfile", out);
    return syscall(SYS_sendfile, out, in, at, len);
}
ssize_t sendfile(int out, int in, off_t *at, size_t len) { return sendfile64(out, in, at, len); }
ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned flags) {
    unmodelled("splice", out);
    return syscall(SYS_splice, in, in_at, out, out_at, len, flags);
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t at) {
    if (fd >= 0 && (prot & PROT_WRITE) && (flags & MAP_SHARED))
        unmodelled("shared writable mapping", fd);
    return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, at);
}
void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t at) {
    return mmap64(addr, len, prot, flags, fd, at);
}

/* ---- lengths ------------------------------------------------------------------------------ */

int ftruncate64(int fd, off64_t len) {
    if (log_fd < 0)
        return (int)syscall(SYS_ftruncate, fd, len);
    pthread_mutex_lock(&lock);
    struct file *f = of(fd);
    int result;
    if (f && faulty(C_TRUNCATE, f->path)) {
        result = fail();
    } else {
        result = (int)syscall(SYS_ftruncate, fd, len);
        if (result == 0 && f && !f->quiet)
            record(TRUNCATE, f->id, (uint64_t)len, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

int truncate64(const char *path, off64_t len) {
    int fd = do_open(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int result = ftruncate64(fd, len), saved = errno;
    close(fd);
    errno = saved;
    return result;
}
int truncate(const char *path, off_t len) { return truncate64(path, len); }

int fallocate64(int fd, int mode, off64_t at, off64_t len) {
    if (log_fd < 0)
        return (int)syscall(SYS_fallocate, fd, mode, at, len);
    pthread_mutex_lock(&lock);
    struct file *f = of(fd);
    int result;
    if (f && faulty(C_WRITE, f->path)) {
        result = fail();
    } else {
        result = (int)syscall(SYS_fallocate, fd, mode, at, len);
        if (result == 0 && f && !f->quiet) {
            if (mode != 0)
                violation("fallocate with a mode", f->path);
            record(ALLOCATE, f->id, (uint64_t)at, (uint64_t)len, NULL, 0);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}
int fallocate(int fd, int mode, off_t at, off_t len) { return fallocate64(fd, mode, at, len); }
int posix_fallocate64(int fd, off64_t at, off64_t len) {
    int saved = errno, result = fallocate64(fd, 0, at, len), error = errno;
    errno = saved;
    return result == 0 ? 0 : error;
}
int posix_fallocate(int fd, off_t at, off_t len) { return posix_fallocate64(fd, at, len); }

/* ---- syncs -------------------------------------------------------------------------------- */

static int do_sync(int fd, long number) {
    char path[PATH_MAX];
    if (log_fd < 0)
        return (int)syscall(number, fd);
    pthread_mutex_lock(&lock);
    struct file *f = of(fd);
    const char *dir = f ? NULL : directory_of(fd, path);
    if (!f && !dir) {
        pthread_mutex_unlock(&lock);
        return (int)syscall(number, fd);
    }
    uint64_t began = serial, id = f ? f->id : 0;
    int hit = faulty(C_SYNC, f ? f->path : dir);
    pthread_mutex_unlock(&lock);
    int result = hit ? fail() : (int)syscall(number, fd);
    int saved = errno;
    if (delay)
        usleep(delay);
    pthread_mutex_lock(&lock);
    if (result != 0 && saved == EINTR)
        ; /* interrupted is not failed: what was dirty still is */
    else if (f)
        record(result == 0 ? SYNC : SYNC_FAILED, id, began, 0, NULL, 0);
    else if (result == 0)
        record(SYNC_DIR, 0, began, 0, dir, strlen(dir));
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }
/* sync_file_range, syncfs and sync promise less or are somebody else's: they count for nothing. */

/* ---- names -------------------------------------------------------------------------------- */

/* Asks for the lock and for the fault of a call that changes names; 0 to go on. */
static int begin_name(const char *rel) {
    pthread_mutex_lock(&lock);
    if (!faulty(C_NAME, rel))
        return 0;
    pthread_mutex_unlock(&lock);
    return fail();
}

static int do_rename(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char a[PATH_MAX], b[PATH_MAX];
    const char *old = resolve(from_dir, from, a), *new = resolve(to_dir, to, b);
    if (!old && !new)
        return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    if (begin_name(old ? old : new) != 0)
        return -1;
    int result = (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
    int saved = errno;
    if (result == 0) {
        if (!old || !new || (flags & ~1u))
            violation("a rename across the root, or an exchange", a);
        else
            record_two(RENAME, old, new);
        struct stat s;
        struct file *f = lstat(b, &s) == 0 ? lookup(&s) : NULL;
        if (f && new)
            snprintf(f->path, sizeof f->path, "%s", new);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}
int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return do_rename(from_dir, from, to_dir, to, 0);
}
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return do_rename(from_dir, from, to_dir, to, flags);
}

static int do_link(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char a[PATH_MAX], b[PATH_MAX];
    const char *old = resolve(from_dir, from, a), *new = resolve(to_dir, to, b);
    if (!new)
        return (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    if (begin_name(new) != 0)
        return -1;
    int result = (int)syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    int saved = errno;
    if (result == 0) {
        if (!old)
            violation("a link from outside the root", b);
        else
            record_two(LINK, old, new);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}
int link(const char *from, const char *to) { return do_link(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    return do_link(from_dir, from, to_dir, to, flags);
}

int symlinkat(const char *target, int dirfd, const char *path) {
    char full[PATH_MAX];
    const char *rel = resolve(dirfd, path, full);
    if (rel) {
        pthread_mutex_lock(&lock);
        violation("symlink", rel);
        pthread_mutex_unlock(&lock);
    }
    return (int)syscall(SYS_symlinkat, target, dirfd, path);
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

int unlinkat(int dirfd, const char *path, int flags) {
    char full[PATH_MAX];
    const char *rel = resolve(dirfd, path, full);
    if (!rel)
        return (int)syscall(SYS_unlinkat, dirfd, path, flags);
    if (begin_name(rel) != 0)
        return -1;
    int result = (int)syscall(SYS_unlinkat, dirfd, path, flags);
    int saved = errno;
    if (result == 0)
        record_text(flags & AT_REMOVEDIR ? RMDIR : UNLINK, rel);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    struct stat s;
    int dir = lstat(path, &s) == 0 && S_ISDIR(s.st_mode);
    return unlinkat(AT_FDCWD, path, dir ? AT_REMOVEDIR : 0);
}

int mkdirat(int dirfd, const char *path, mode_t mode) {
    char full[PATH_MAX];
    const char *rel = resolve(dirfd, path, full);
    if (!rel)
        return (int)syscall(SYS_mkdirat, dirfd, path, mode);
    if (begin_name(rel) != 0)
        return -1;
    int result = (int)syscall(SYS_mkdirat, dirfd, path, mode);
    int saved = errno;
    if (result == 0)
        record_text(MKDIR, rel);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
