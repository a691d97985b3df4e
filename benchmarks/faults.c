/* Counts a process's file-system operations under a folder, and at the n-th one kills it, fails, signals or stops.
 *
 * Loaded by LD_PRELOAD. `fault_arm` reads FAULT_* from the environment (see faults.py) when the library is loaded or
 * when it is called; the process that armed it counts, its children do not. Each operation is a line of FAULT_LOG, its
 * kind and its path, written before it happens.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum act { NOTHING, BEFORE, WITHIN, AFTER, ERROR, SIGNAL };
enum fate { DO, HALF, REFUSE, LAST };

static char folder[PATH_MAX];
static size_t folder_length;
static pid_t armed;
static int log_fd = -1, number, lasting;
static long at;
static enum act act;
static atomic_long count;

#define REAL(result, name, ...) static result (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

void fault_arm(void) {
    const char *where = getenv("FAULT_FOLDER"), *log = getenv("FAULT_LOG"), *what = getenv("FAULT_ACT");
    if (!where || !log || !what || !realpath(where, folder)) return;
    folder_length = strlen(folder);
    at = atol(getenv("FAULT_AT") ? getenv("FAULT_AT") : "0");
    number = atoi(getenv("FAULT_NUMBER") ? getenv("FAULT_NUMBER") : "0");
    lasting = getenv("FAULT_LASTING") != NULL;
    act = !strcmp(what, "before") ? BEFORE : !strcmp(what, "in") ? WITHIN : !strcmp(what, "after") ? AFTER
        : !strcmp(what, "error") ? ERROR : !strcmp(what, "signal") ? SIGNAL : NOTHING;
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 700);
    syscall(SYS_close, fd);
    atomic_store(&count, 0);
    armed = getpid();
}

__attribute__((constructor)) static void loaded(void) {
    fault_arm();
    for (const char *names[] = {"FAULT_FOLDER", "FAULT_LOG", "FAULT_ACT", "FAULT_AT", "FAULT_NUMBER", "FAULT_LASTING", 0},
         **name = names; *name; name++) unsetenv(*name);
}

static int is_inside(const char *path) {
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static const char *path_of(int fd, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, found, PATH_MAX - 1);
    found[length > 0 ? length : 0] = 0;
    return found;
}

static const char *absolute(int dir, const char *path, char *found) {
    if (path[0] == '/') { snprintf(found, PATH_MAX, "%s", path); return found; }
    char start[PATH_MAX];
    if (dir == AT_FDCWD) { if (!getcwd(start, sizeof start)) start[0] = 0; } else path_of(dir, start);
    while (path[0] == '.' && path[1] == '/') path += 2;
    if ((size_t)snprintf(found, PATH_MAX, "%s/%s", start, path) >= PATH_MAX) found[0] = 0;
    return found;
}

/* Which operations a full disk refuses: those that need space. */
static int needs_space(const char *kind) { return strchr("owml", kind[0]) != NULL; }

static enum fate operation(const char *kind, const char *path) {
    if (armed != getpid() || !is_inside(path)) return DO;
    long n = atomic_fetch_add(&count, 1) + 1;
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %.*s\n", kind, PATH_MAX, path + folder_length);
    syscall(SYS_write, log_fd, line, length);
    if (n < at || !at || (n > at && !(act == ERROR && lasting))) return DO;
    switch (act) {
        case BEFORE: die();
        case WITHIN: return HALF;
        case AFTER: return LAST;
        case SIGNAL: kill(getpid(), number); return DO;
        case ERROR:
            if (number == ENOSPC && !needs_space(kind)) return DO;
            return number == ENOSPC && n == at && kind[0] == 'w' ? HALF : REFUSE;
        default: return DO;
    }
}

static enum fate of_fd(const char *kind, int fd) {
    if (armed != getpid() || fd < 0) return DO;
    char path[PATH_MAX];
    return operation(kind, path_of(fd, path));
}

static enum fate of_path(const char *kind, int dir, const char *path) {
    if (armed != getpid()) return DO;
    char found[PATH_MAX];
    return operation(kind, absolute(dir, path, found));
}

static long ended(enum fate fate, long result) {
    if (fate == LAST) die();
    return result;
}

#define GUARD(kind_and_place, call) do { \
    enum fate fate = kind_and_place; \
    if (fate == REFUSE) { errno = number; return -1; } \
    if (fate == HALF) die(); \
    return ended(fate, call); } while (0)

/* Half of `size`: then the process is killed, or the call is short. */
#define GUARD_BYTES(fd, size, whole, half) do { \
    enum fate fate = of_fd("write", fd); \
    if (fate == REFUSE) { errno = number; return -1; } \
    if (fate == HALF) { \
        ssize_t done = (size) / 2 > 0 ? half : 0; \
        if (act != ERROR) die(); \
        if (done > 0) return done; \
        errno = number; return -1; } \
    return ended(fate, whole); } while (0)

#define OPEN(name) int name(const char *path, int flags, ...) { \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
    REAL(int, #name, const char *, int, ...); \
    if (!(flags & (O_CREAT | O_WRONLY | O_RDWR))) return real(path, flags, mode); \
    GUARD(of_path("open", AT_FDCWD, path), real(path, flags, mode)); }
OPEN(open)
OPEN(open64)

#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
    REAL(int, #name, int, const char *, int, ...); \
    if (!(flags & (O_CREAT | O_WRONLY | O_RDWR))) return real(dir, path, flags, mode); \
    GUARD(of_path("open", dir, path), real(dir, path, flags, mode)); }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    GUARD_BYTES(fd, size, real(fd, bytes, size), real(fd, bytes, size / 2));
}

#define PWRITE(name, offset_type) ssize_t name(int fd, const void *bytes, size_t size, offset_type offset) { \
    REAL(ssize_t, #name, int, const void *, size_t, offset_type); \
    GUARD_BYTES(fd, size, real(fd, bytes, size, offset), real(fd, bytes, size / 2, offset)); }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int num_parts) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    GUARD_BYTES(fd, num_parts ? parts[0].iov_len : 0, real(fd, parts, num_parts), write(fd, parts[0].iov_base, parts[0].iov_len / 2));
}

static size_t left_of(int fd, size_t size) {
    struct stat found;
    return fstat(fd, &found) == 0 && (size_t)found.st_size < size ? (size_t)found.st_size : size;
}

#define SENDFILE(name, offset_type) ssize_t name(int to, int from, offset_type *offset, size_t size) { \
    REAL(ssize_t, #name, int, int, offset_type *, size_t); \
    size = left_of(from, size); \
    GUARD_BYTES(to, size, real(to, from, offset, size), real(to, from, offset, size / 2)); }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    size = left_of(from, size);
    GUARD_BYTES(to, size, real(from, from_offset, to, to_offset, size, flags), real(from, from_offset, to, to_offset, size / 2, flags));
}

#define OF_FD(name) int name(int fd) { REAL(int, #name, int); GUARD(of_fd("fsync", fd), real(fd)); }
OF_FD(fsync)
OF_FD(fdatasync)

#define TRUNCATE(name, size_type) int name(int fd, size_type size) { \
    REAL(int, #name, int, size_type); GUARD(of_fd("truncate", fd), real(fd, size)); }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *); GUARD(of_path("rename", AT_FDCWD, to), real(from, to)); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *); GUARD(of_path("rename", to_dir, to), real(from_dir, from, to_dir, to)); }
int unlink(const char *path) {
    REAL(int, "unlink", const char *); GUARD(of_path("unlink", AT_FDCWD, path), real(path)); }
int unlinkat(int dir, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    GUARD(of_path(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dir, path), real(dir, path, flags)); }
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *); GUARD(of_path("link", AT_FDCWD, to), real(from, to)); }
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    GUARD(of_path("link", to_dir, to), real(from_dir, from, to_dir, to, flags)); }
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t); GUARD(of_path("mkdir", AT_FDCWD, path), real(path, mode)); }
int mkdirat(int dir, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t); GUARD(of_path("mkdir", dir, path), real(dir, path, mode)); }
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *); GUARD(of_path("rmdir", AT_FDCWD, path), real(path)); }
