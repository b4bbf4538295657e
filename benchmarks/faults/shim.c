/* Count and log the file-system calls of a process below one folder, and let one fail. Loaded with LD_PRELOAD; see shim.py.

   The calls of libc are replaced by ones that first decide whether this call is the chosen one: it then fails, or
   the process is killed before, after or (a write) in the middle of it. Calls that change something and calls that only
   read are counted apart, each from 1. The log has everything that is needed to rebuild the disk at any moment. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

enum action { /* the same order as in shim.py */
    PASS, FAIL, FAIL_FROM_HERE, KILL_BEFORE, KILL_AFTER, KILL_WITHIN
};
enum kind { /* the same order as in shim.py */
    OPEN, CREATE, WRITE, TRUNCATE, RENAME, LINK, UNLINK, RMDIR, MKDIR, MODE, FSYNC, CLOSE,
    READ, STAT, LIST, MAP_SHARED_WRITE, CLOSE_READ
};
enum { MAX_FD = 65536, OURS = 0x5eed };

struct record { /* 48 bytes, then both paths and the data */
    int32_t kind, fd, flags, error, thread, is_change;
    int64_t offset, length;
    int32_t path_length, other_length;
};

static char folder[PATH_MAX];
static size_t folder_length;
static int log_fd = -1, error_number, wanted_action, counts_changes;
static long wanted, counts[2]; /* reads, changes */
static pid_t armed_pid;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned char watched[MAX_FD], writable[MAX_FD];

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

static void trap_renames(void);

/* Start to watch `path`; `at` counts from 1, 0 chooses no call. */
void faults_arm(const char *path, const char *log_path, int action, int changes, long at, int error) {
    strncpy(folder, path, sizeof folder - 1);
    folder_length = strlen(folder);
    log_fd = *log_path ? REAL(open)(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    wanted_action = action, counts_changes = changes, wanted = at, error_number = error;
    counts[0] = counts[1] = 0;
    armed_pid = getpid();
    trap_renames();
}

long faults_count(int changes) { return counts[changes]; }

static int changes(enum kind kind) { return kind < READ && kind != OPEN; }

static int is_armed(void) { return armed_pid && armed_pid == getpid(); }

static int full_path(int directory, const char *path, char *out) {
    size_t length = 0;
    if (!path) return 0;
    if (path[0] != '/') {
        char link[64];
        ssize_t n;
        if (directory == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        n = syscall(SYS_readlink, link, out, PATH_MAX - 2);
        if (n < 0) return 0;
        length = n;
        if (*path) out[length++] = '/';
    }
    if (length + strlen(path) >= PATH_MAX) return 0;
    strcpy(out + length, path);
    return 1;
}

static int is_below(const char *path) {
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int is_watched_path(int directory, const char *path, char *out) {
    return is_armed() && full_path(directory, path, out) && is_below(out);
}

static int is_watched(int fd) { return is_armed() && fd >= 0 && fd < MAX_FD && watched[fd]; }

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* A full disk refuses what needs room; a broken one everything; a folder without permission all changes of names. */
static int may_fail(enum kind kind, int flags) {
    if (error_number == EIO) return 1;
    if (error_number == ENOSPC)
        return kind == CREATE ? !!(flags & O_CREAT)
            : kind == WRITE || kind == MKDIR || kind == LINK || kind == RENAME || kind == TRUNCATE;
    return kind == CREATE || kind == OPEN || kind == RENAME || kind == LINK || kind == UNLINK || kind == RMDIR
        || kind == MKDIR || kind == MODE || kind == STAT || kind == LIST;
}

static enum action decide(enum kind kind, int flags) {
    int is_change = changes(kind);
    long number = ++counts[is_change];
    if (!wanted || wanted_action == PASS) return PASS;
    if (wanted_action == FAIL_FROM_HERE) {
        if (is_change == counts_changes && number == wanted) counts_changes = 2; /* from now on */
        if (counts_changes != 2) return PASS;
        if (error_number == EACCES && !is_change) return PASS; /* read-only */
        return may_fail(kind, flags) ? FAIL : PASS;
    }
    if (is_change != counts_changes || number != wanted) return PASS;
    if (wanted_action == KILL_BEFORE) die();
    return wanted_action;
}

static void put(const void *data, size_t length) {
    while (length) {
        ssize_t n = syscall(SYS_write, log_fd, data, length);
        if (n <= 0) return;
        data = (const char *)data + n, length -= n;
    }
}

static void note(enum kind kind, const char *path, const char *other, int fd, int flags, int64_t offset,
                 const void *data, int64_t length, int error) {
    struct record record = {
        kind, fd, flags, error, syscall(SYS_gettid), changes(kind), offset, length,
        path ? strlen(path) : 0, other ? strlen(other) : 0
    };
    if (log_fd < 0) return;
    put(&record, sizeof record);
    put(path, record.path_length);
    put(other, record.other_length);
    if (data) put(data, length);
}

/* Run a call with one or two paths: `CALL` sets `result`. */
#define WITH_FAULT(KIND, FLAGS, PATH, OTHER, FD, CALL)                                           \
    pthread_mutex_lock(&mutex);                                                                 \
    enum action action = decide(KIND, FLAGS);                                                   \
    int saved;                                                                                  \
    if (action == FAIL) { result = -1; errno = error_number; }                                  \
    else { CALL; }                                                                              \
    saved = errno;                                                                              \
    note(KIND, PATH, OTHER, FD, FLAGS, 0, 0, 0, result == -1 ? saved : 0);                      \
    if (action == KILL_AFTER || action == KILL_WITHIN) die();                                   \
    pthread_mutex_unlock(&mutex);                                                               \
    errno = saved;                                                                              \
    return result

/* --- open and close ---------------------------------------------------------------------------------------------- */

static int watched_open(int directory, const char *name, const char *path, int flags, mode_t mode) {
    int result, saved, is_writing = (flags & O_ACCMODE) != O_RDONLY;
    enum kind kind = flags & (O_CREAT | O_TRUNC) ? CREATE : OPEN;
    pthread_mutex_lock(&mutex);
    enum action action = decide(kind, flags);
    if (action == FAIL) result = -1, errno = error_number;
    else result = syscall(SYS_openat, directory, name, flags, mode);
    saved = errno;
    if (result >= 0 && result < MAX_FD) watched[result] = 1, writable[result] = is_writing;
    note(kind, path, 0, result, flags, 0, 0, 0, result == -1 ? saved : 0);
    if (action == KILL_AFTER || action == KILL_WITHIN) die();
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}

#define MODE_ARGUMENT                                                                           \
    mode_t mode = 0;                                                                            \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                      \
        va_list list;                                                                           \
        va_start(list, flags);                                                                  \
        mode = va_arg(list, mode_t);                                                            \
        va_end(list);                                                                           \
    }

#define OPEN_CALL(NAME)                                                                         \
    int NAME(const char *name, int flags, ...) {                                                \
        char path[PATH_MAX];                                                                    \
        MODE_ARGUMENT                                                                           \
        if (!is_watched_path(AT_FDCWD, name, path)) return syscall(SYS_openat, AT_FDCWD, name, flags, mode); \
        return watched_open(AT_FDCWD, name, path, flags, mode);                                 \
    }
#define OPENAT_CALL(NAME)                                                                       \
    int NAME(int directory, const char *name, int flags, ...) {                                 \
        char path[PATH_MAX];                                                                    \
        MODE_ARGUMENT                                                                           \
        if (!is_watched_path(directory, name, path)) return syscall(SYS_openat, directory, name, flags, mode); \
        return watched_open(directory, name, path, flags, mode);                                \
    }
OPEN_CALL(open)
OPEN_CALL(open64)
OPENAT_CALL(openat)
OPENAT_CALL(openat64)

int close(int fd) {
    int result;
    if (!is_watched(fd)) return syscall(SYS_close, fd);
    watched[fd] = 0;
    if (!writable[fd]) {
        note(CLOSE_READ, 0, 0, fd, 0, 0, 0, 0, 0); /* not counted: nothing can go wrong */
        return syscall(SYS_close, fd);
    }
    pthread_mutex_lock(&mutex);
    enum action action = decide(CLOSE, 0);
    result = syscall(SYS_close, fd); /* closes even if it fails */
    int saved = errno;
    note(CLOSE, 0, 0, fd, 0, 0, 0, 0, 0);
    if (action == FAIL) result = -1, saved = error_number;
    if (action == KILL_AFTER || action == KILL_WITHIN) die();
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

static int64_t position(int fd) {
    struct stat facts;
    if (!(syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND)) return syscall(SYS_lseek, fd, 0, SEEK_CUR);
    syscall(SYS_newfstatat, fd, "", &facts, AT_EMPTY_PATH);
    return facts.st_size;
}

static ssize_t watched_write(int fd, const void *data, size_t length, int64_t offset, int is_at) {
    ssize_t result = -1;
    pthread_mutex_lock(&mutex);
    int is_first = counts_changes != 2;
    enum action action = decide(WRITE, 0);
    if (!is_at) offset = position(fd);
    int saved = error_number;
    size_t part = length;
    if (action == KILL_WITHIN) part = length / 2;
    if (action == FAIL && wanted_action == FAIL_FROM_HERE && error_number == ENOSPC && is_first && length > 1)
        action = PASS, part = length / 2; /* the last bytes that fit */
    if (action != FAIL) {
        result = is_at ? syscall(SYS_pwrite64, fd, data, part, offset) : syscall(SYS_write, fd, data, part);
        saved = errno;
    }
    note(WRITE, 0, 0, fd, 0, offset, result > 0 ? data : 0, result > 0 ? result : 0, result == -1 ? saved : 0);
    if (action == KILL_AFTER || action == KILL_WITHIN) die();
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}

ssize_t write(int fd, const void *data, size_t length) {
    return is_watched(fd) ? watched_write(fd, data, length, 0, 0) : syscall(SYS_write, fd, data, length);
}
#define PWRITE_CALL(NAME)                                                                       \
    ssize_t NAME(int fd, const void *data, size_t length, off_t offset) {                       \
        return is_watched(fd) ? watched_write(fd, data, length, offset, 1)                      \
                              : syscall(SYS_pwrite64, fd, data, length, offset);                \
    }
PWRITE_CALL(pwrite)
PWRITE_CALL(pwrite64)

static ssize_t joined(int fd, const struct iovec *parts, int count, int64_t offset, int is_at) {
    size_t length = 0, used = 0;
    for (int i = 0; i < count; i++) length += parts[i].iov_len;
    char *data = malloc(length + 1);
    for (int i = 0; i < count; used += parts[i++].iov_len) memcpy(data + used, parts[i].iov_base, parts[i].iov_len);
    ssize_t result = watched_write(fd, data, length, offset, is_at);
    int saved = errno;
    free(data);
    errno = saved;
    return result;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return is_watched(fd) ? joined(fd, parts, count, 0, 0) : syscall(SYS_writev, fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return is_watched(fd) ? joined(fd, parts, count, offset, 1) : REAL(pwritev)(fd, parts, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset) {
    return is_watched(fd) ? joined(fd, parts, count, offset, 1) : REAL(pwritev64)(fd, parts, count, offset);
}

/* The bytes that a copy within the kernel would have written. */
static ssize_t copied(int out, int in, off_t *in_offset, size_t length) {
    size_t room = length > (1 << 20) ? 1 << 20 : length;
    char *data = malloc(room);
    ssize_t n = in_offset ? syscall(SYS_pread64, in, data, room, *in_offset) : syscall(SYS_read, in, data, room);
    if (n > 0) {
        ssize_t written = watched_write(out, data, n, 0, 0);
        int saved = errno;
        if (written >= 0 && in_offset) *in_offset += written;
        if (written >= 0 && !in_offset && written < n) syscall(SYS_lseek, in, written - n, SEEK_CUR);
        if (written < 0 && !in_offset) syscall(SYS_lseek, in, -n, SEEK_CUR);
        n = written, errno = saved;
    }
    int saved = errno;
    free(data);
    errno = saved;
    return n;
}
ssize_t sendfile(int out, int in, off_t *offset, size_t length) {
    return is_watched(out) ? copied(out, in, offset, length) : syscall(SYS_sendfile, out, in, offset, length);
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t length) { return sendfile(out, in, offset, length); }
ssize_t copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t length, unsigned flags) {
    if (is_watched(out)) { errno = ENOSYS; return -1; } /* callers then read and write */
    return syscall(SYS_copy_file_range, in, in_offset, out, out_offset, length, flags);
}

static int watched_truncate(int fd, int64_t length) {
    int result;
    pthread_mutex_lock(&mutex);
    enum action action = decide(TRUNCATE, 0);
    if (action == FAIL) result = -1, errno = error_number;
    else result = syscall(SYS_ftruncate, fd, length);
    int saved = errno;
    note(TRUNCATE, 0, 0, fd, 0, length, 0, 0, result == -1 ? saved : 0);
    if (action == KILL_AFTER || action == KILL_WITHIN) die();
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}
int ftruncate(int fd, off_t length) { return is_watched(fd) ? watched_truncate(fd, length) : syscall(SYS_ftruncate, fd, length); }
int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }
int posix_fallocate(int fd, off_t offset, off_t length) {
    if (!is_watched(fd)) return REAL(posix_fallocate)(fd, offset, length);
    return watched_truncate(fd, offset + length) ? errno : 0;
}
int posix_fallocate64(int fd, off_t offset, off_t length) { return posix_fallocate(fd, offset, length); }
int fallocate(int fd, int mode, off_t offset, off_t length) {
    if (is_watched(fd)) { errno = EOPNOTSUPP; return -1; }
    return REAL(fallocate)(fd, mode, offset, length);
}
int fallocate64(int fd, int mode, off_t offset, off_t length) { return fallocate(fd, mode, offset, length); }

static int flushed(int fd, long number) {
    int result = 0;
    if (!is_watched(fd)) return syscall(number, fd);
    WITH_FAULT(FSYNC, 0, 0, 0, fd, result = syscall(number, fd));
}
int fsync(int fd) { return flushed(fd, SYS_fsync); }
int fdatasync(int fd) { return flushed(fd, SYS_fdatasync); }

static void check_map(int protection, int flags, int fd) {
    if (is_watched(fd) && (flags & MAP_SHARED) && (protection & PROT_WRITE))
        note(MAP_SHARED_WRITE, 0, 0, fd, 0, 0, 0, 0, 0); /* writes that this shim cannot see: the campaign refuses them */
}
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    check_map(protection, flags, fd);
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap(address, length, protection, flags, fd, offset);
}

/* --- names ------------------------------------------------------------------------------------------------------- */

static int renamed(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int result;
    if (!is_watched_path(from_directory, from, path) | !is_watched_path(to_directory, to, other))
        return syscall(SYS_renameat2, from_directory, from, to_directory, to, flags, OURS);
    WITH_FAULT(RENAME, flags, path, other, -1, result = syscall(SYS_renameat2, from_directory, from, to_directory, to, flags, OURS));
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return renamed(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return renamed(a, from, b, to, flags); }

/* Rust's tempfile, with which safetensors writes, renames by a system call without libc: let the kernel send a signal
   instead. Calls of this file carry a mark in the sixth argument, which the kernel ignores. */
static void on_system_call(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    int result, is_plain = info->si_syscall == SYS_rename;
    (void)number;
    if (is_plain) result = renamed(AT_FDCWD, (char *)r[REG_RDI], AT_FDCWD, (char *)r[REG_RSI], 0);
    else result = renamed(r[REG_RDI], (char *)r[REG_RSI], r[REG_RDX], (char *)r[REG_R10],
                          info->si_syscall == SYS_renameat2 ? r[REG_R8] : 0);
    r[REG_RAX] = result < 0 ? -errno : result;
}

static void trap_renames(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rename, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OURS, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    struct sigaction handler = { .sa_sigaction = on_system_call, .sa_flags = SA_SIGINFO };
    sigaction(SIGSYS, &handler, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("no seccomp filter");
        _exit(99);
    }
}

static int linked(int a, const char *from, int b, const char *to, int flags) {
    char path[PATH_MAX], other[PATH_MAX];
    int result;
    if (!is_watched_path(b, to, other)) return syscall(SYS_linkat, a, from, b, to, flags);
    full_path(a, from, path);
    WITH_FAULT(LINK, 0, path, other, -1, result = syscall(SYS_linkat, a, from, b, to, flags));
}
int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return linked(a, from, b, to, flags); }

int unlinkat(int directory, const char *name, int flags) {
    char path[PATH_MAX];
    int result;
    if (!is_watched_path(directory, name, path)) return syscall(SYS_unlinkat, directory, name, flags);
    WITH_FAULT(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, path, 0, -1, result = syscall(SYS_unlinkat, directory, name, flags));
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) {
    int result = unlink(name);
    return result && errno == EISDIR ? rmdir(name) : result;
}

int mkdirat(int directory, const char *name, mode_t mode) {
    char path[PATH_MAX];
    int result;
    if (!is_watched_path(directory, name, path)) return syscall(SYS_mkdirat, directory, name, mode);
    WITH_FAULT(MKDIR, 0, path, 0, -1, result = syscall(SYS_mkdirat, directory, name, mode));
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int chmod(const char *name, mode_t mode) {
    char path[PATH_MAX];
    int result;
    if (!is_watched_path(AT_FDCWD, name, path)) return syscall(SYS_chmod, name, mode);
    WITH_FAULT(MODE, 0, path, 0, -1, result = syscall(SYS_chmod, name, mode));
}
int fchmod(int fd, mode_t mode) {
    int result;
    if (!is_watched(fd)) return syscall(SYS_fchmod, fd, mode);
    WITH_FAULT(MODE, 0, 0, 0, fd, result = syscall(SYS_fchmod, fd, mode));
}
int utimensat(int directory, const char *name, const struct timespec times[2], int flags) {
    char path[PATH_MAX];
    int result;
    if (!is_watched_path(directory, name, path)) return syscall(SYS_utimensat, directory, name, times, flags);
    WITH_FAULT(MODE, 0, path, 0, -1, result = syscall(SYS_utimensat, directory, name, times, flags));
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

static ssize_t watched_read(int fd, void *data, size_t length, int64_t offset, int is_at) {
    ssize_t result;
    WITH_FAULT(READ, 0, 0, 0, fd,
              result = is_at ? syscall(SYS_pread64, fd, data, length, offset) : syscall(SYS_read, fd, data, length));
}
ssize_t read(int fd, void *data, size_t length) {
    return is_watched(fd) ? watched_read(fd, data, length, 0, 0) : syscall(SYS_read, fd, data, length);
}
ssize_t pread(int fd, void *data, size_t length, off_t offset) {
    return is_watched(fd) ? watched_read(fd, data, length, offset, 1) : syscall(SYS_pread64, fd, data, length, offset);
}
ssize_t pread64(int fd, void *data, size_t length, off_t offset) { return pread(fd, data, length, offset); }

static int facts_of(int directory, const char *name, struct stat *facts, int flags) {
    char path[PATH_MAX];
    int result;
    if (!is_watched_path(directory, name, path)) return syscall(SYS_newfstatat, directory, name, facts, flags);
    WITH_FAULT(STAT, 0, path, 0, -1, result = syscall(SYS_newfstatat, directory, name, facts, flags));
}
int fstatat(int directory, const char *name, struct stat *facts, int flags) { return facts_of(directory, name, facts, flags); }
int fstatat64(int directory, const char *name, struct stat64 *facts, int flags) {
    return facts_of(directory, name, (struct stat *)facts, flags);
}
int stat(const char *name, struct stat *facts) { return facts_of(AT_FDCWD, name, facts, 0); }
int stat64(const char *name, struct stat64 *facts) { return facts_of(AT_FDCWD, name, (struct stat *)facts, 0); }
int lstat(const char *name, struct stat *facts) { return facts_of(AT_FDCWD, name, facts, AT_SYMLINK_NOFOLLOW); }
int lstat64(const char *name, struct stat64 *facts) {
    return facts_of(AT_FDCWD, name, (struct stat *)facts, AT_SYMLINK_NOFOLLOW);
}
int statx(int directory, const char *name, int flags, unsigned mask, struct statx *facts) {
    char path[PATH_MAX];
    int result;
    if (!*name || !is_watched_path(directory, name, path))
        return syscall(SYS_statx, directory, name, flags, mask, facts);
    WITH_FAULT(STAT, 0, path, 0, -1, result = syscall(SYS_statx, directory, name, flags, mask, facts));
}
int faccessat(int directory, const char *name, int mode, int flags) {
    char path[PATH_MAX];
    int result;
    if (!is_watched_path(directory, name, path)) return REAL(faccessat)(directory, name, mode, flags);
    WITH_FAULT(STAT, 0, path, 0, -1, result = REAL(faccessat)(directory, name, mode, flags));
}
int access(const char *name, int mode) { return faccessat(AT_FDCWD, name, mode, 0); }

DIR *opendir(const char *name) {
    char path[PATH_MAX];
    if (!is_watched_path(AT_FDCWD, name, path)) return REAL(opendir)(name);
    pthread_mutex_lock(&mutex);
    enum action action = decide(LIST, 0);
    DIR *result = action == FAIL ? 0 : REAL(opendir)(name);
    int saved = action == FAIL ? error_number : errno;
    note(LIST, path, 0, -1, 0, 0, 0, 0, result ? 0 : saved);
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}
DIR *fdopendir(int fd) {
    if (!is_watched(fd)) return REAL(fdopendir)(fd);
    pthread_mutex_lock(&mutex);
    enum action action = decide(LIST, 0);
    DIR *result = action == FAIL ? 0 : REAL(fdopendir)(fd);
    int saved = action == FAIL ? error_number : errno;
    note(LIST, 0, 0, fd, 0, 0, 0, 0, result ? 0 : saved);
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}
#define READDIR_CALL(NAME, TYPE)                                                                \
    TYPE *NAME(DIR *directory) {                                                                \
        static DIR *last; /* only the first entry of a folder counts */                         \
        char link[64], path[PATH_MAX];                                                          \
        ssize_t n = -1;                                                                         \
        if (is_armed() && directory != last) {                                                                   \
            snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd(directory));                  \
            n = syscall(SYS_readlink, link, path, PATH_MAX - 1);                                \
        }                                                                                       \
        if (n < 0) return REAL(NAME)(directory);                                                \
        path[n] = 0, last = directory;                                                          \
        if (!is_below(path)) return REAL(NAME)(directory);                                      \
        pthread_mutex_lock(&mutex);                                                             \
        enum action action = decide(LIST, 0);                                                   \
        int saved = error_number;                                                               \
        TYPE *result = 0;                                                                       \
        if (action != FAIL) result = REAL(NAME)(directory), saved = errno;                      \
        note(LIST, path, 0, -1, 0, 0, 0, 0, action == FAIL ? saved : 0);                        \
        pthread_mutex_unlock(&mutex);                                                           \
        errno = saved;                                                                          \
        return result;                                                                          \
    }
READDIR_CALL(readdir, struct dirent)
READDIR_CALL(readdir64, struct dirent64)
