/* Makes system calls fail, for tests: loaded before the C library with LD_PRELOAD.
 *
 * AHA_FAULTS holds rules, one a line, of fields separated by `|`:
 *
 *     CALL|GLOB|WHAT|SKIP|COUNT|FLAG
 *
 * CALL   open, write, fsync, rename, mkdir, truncate: the call that a rule is about (with its siblings: pwrite, openat …)
 * GLOB   which paths, as fnmatch(3) has it; `*` matches slashes too. Of a rename, the new name.
 * WHAT   an errno by name, such as ENOSPC; `short`: a write takes one byte of several; `=PATH`: an open opens that file
 * SKIP   so many calls that would be hit pass first, in each process
 * COUNT  so many calls are hit then, in each process; 0: all
 * FLAG   a file: the rule holds while it is there; empty: always
 *
 * AHA_FAULTS_CLOCK names a file that holds seconds by which the wall clock is wrong; the monotonic clock stays right.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define RULES_MAX 16
#define SHORT (-1)
#define REDIRECT (-2)

struct rule {
    char *call, *glob, *flag, *target;
    int what;
    int skip, count;
    int hits;
};

static struct rule rules[RULES_MAX];
static int rules_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int number_of(const char *name) {
    static const struct { const char *name; int number; } known[] = {
        {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EIO", EIO}, {"EACCES", EACCES}, {"EROFS", EROFS}, {"EMFILE", EMFILE},
        {"ENOENT", ENOENT},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) return known[i].number;
    fprintf(stderr, "shim: what is %s?\n", name);
    abort();
}

__attribute__((constructor)) static void load(void) {
    const char *text = getenv("AHA_FAULTS");
    if (!text) return;
    char *copy = strdup(text), *lines = copy, *line;
    while ((line = strsep(&lines, "\n"))) {
        if (!*line) continue;
        char *field[6];
        for (int i = 0; i < 6; i++)
            if (!(field[i] = strsep(&line, "|")) || rules_count == RULES_MAX) {
                fprintf(stderr, "shim: a rule has six fields, and there are %d rules at most\n", RULES_MAX);
                abort();
            }
        struct rule *rule = &rules[rules_count++];
        rule->call = field[0];
        rule->glob = field[1];
        rule->target = field[2][0] == '=' ? field[2] + 1 : NULL;
        rule->what = rule->target ? REDIRECT : !strcmp(field[2], "short") ? SHORT : number_of(field[2]);
        rule->skip = atoi(field[3]);
        rule->count = atoi(field[4]);
        rule->flag = field[5];
    }
}

/* The rule that hits this call, if one does; it is counted then. */
static struct rule *hit(const char *call, const char *path) {
    int before = errno;
    struct rule *found = NULL;
    for (int i = 0; i < rules_count && !found; i++) {
        struct rule *rule = &rules[i];
        struct stat there;
        if (strcmp(rule->call, call) || fnmatch(rule->glob, path, 0)) continue;
        if (*rule->flag && stat(rule->flag, &there)) continue;
        pthread_mutex_lock(&lock);
        int at = rule->hits++;
        pthread_mutex_unlock(&lock);
        if (at >= rule->skip && (!rule->count || at < rule->skip + rule->count)) found = rule;
    }
    errno = before;
    return found;
}

static struct rule *hit_fd(const char *call, int fd) {
    if (!rules_count) return NULL;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t len = readlink(link, path, sizeof path - 1);
    errno = before;
    if (len < 0) return NULL;
    path[len] = 0;
    return hit(call, path);
}

static struct rule *hit_path(const char *call, int dir, const char *path) {
    if (!rules_count || !path) return NULL;
    char whole[2 * PATH_MAX], base[PATH_MAX];
    if (*path == '/') return hit(call, path);
    int before = errno;
    ssize_t len = -1;
    if (dir == AT_FDCWD) {
        if (getcwd(base, sizeof base)) len = strlen(base);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        len = readlink(link, base, sizeof base - 1);
    }
    errno = before;
    if (len < 0) return NULL;
    base[len] = 0;
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return hit(call, whole);
}


/* Whether a rule makes the call fail; errno says how then. */
static int fails(struct rule *rule) {
    if (!rule || rule->what <= 0) return 0;
    errno = rule->what;
    return 1;
}

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    struct rule *rule = hit_path("open", dir, path);
    if (fails(rule)) return -1;
    if (rule && rule->target) path = rule->target;
    return syscall(SYS_openat, dir, path, flags | O_LARGEFILE, mode);
}

#define MODE(flags, mode) \
    mode_t mode; \
    do { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } while (0);

int open(const char *path, int flags, ...) { MODE(flags, mode) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags, mode) return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags, mode) return open_at(dir, path, flags, mode); }

ssize_t write(int fd, const void *bytes, size_t len) {
    struct rule *rule = hit_fd("write", fd);
    if (fails(rule)) return -1;
    return syscall(SYS_write, fd, bytes, rule && len > 1 ? 1 : len);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (fails(hit_fd("write", fd))) return -1;
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) {
    struct rule *rule = hit_fd("write", fd);
    if (fails(rule)) return -1;
    return syscall(SYS_pwrite64, fd, bytes, rule && len > 1 ? 1 : len, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) { return pwrite(fd, bytes, len, at); }

int fsync(int fd) {
    if (fails(hit_fd("fsync", fd))) return -1;
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    if (fails(hit_fd("fsync", fd))) return -1;
    return syscall(SYS_fdatasync, fd);
}

int ftruncate(int fd, off_t len) {
    if (fails(hit_fd("truncate", fd))) return -1;
    return syscall(SYS_ftruncate, fd, len);
}

int ftruncate64(int fd, off64_t len) { return ftruncate(fd, len); }

int rename(const char *from, const char *to) {
    if (fails(hit_path("rename", AT_FDCWD, to))) return -1;
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int mkdir(const char *path, mode_t mode) {
    if (fails(hit_path("mkdir", AT_FDCWD, path))) return -1;
    return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int outcome = syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("AHA_FAULTS_CLOCK");
    if (outcome || clock != CLOCK_REALTIME || !path) return outcome;
    int before = errno, fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    char text[32] = "";
    if (fd >= 0) {
        if (syscall(SYS_read, fd, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
        syscall(SYS_close, fd);
    }
    errno = before;
    return 0;
}
