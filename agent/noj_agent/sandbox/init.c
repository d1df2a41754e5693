/*
 * The init of a job's sandbox: pid 1 inside bubblewrap, one process per judged job.
 *
 * It serves requests of the agent over a SOCK_SEQPACKET socket whose number is argv[1]:
 *   PUT  copy the bytes of a passed descriptor to /w/<path> (the job's files, a tmpfs)
 *   RUN  run one case: a *reaper* in fresh pid, mount and ipc namespaces mounts fresh tmpfs on
 *        /tmp, /box and /dev/shm and its own /proc, starts the program as its child, reaps
 *        until that child has ended, and exits; the kernel then kills whatever is left.
 * Each request carries a reply socket of its own, so several cases may run at once.
 * A RUN is answered twice: STARTED with a pidfd of the reaper (SIGKILL on it ends the whole case
 * at once), then DONE when no process of the case is left. End of file on the socket ends init
 * and with it every process of the job: a killed agent leaves nothing running.
 *
 * Init and reaper are not dumpable, keep capabilities (of this user namespace only) that the
 * program lacks, and are out of reach of its signals as pid 1: it cannot ptrace, read or stop
 * them. The program joins its cgroups itself, by writing "0" to descriptors that the agent opened,
 * before exec: no pid is translated, and nothing of the set-up is charged to it.
 *
 * stdio is avoided and nothing is allocated: the only dynamic state is the table of cases.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { KIND_RUN = 1, KIND_PUT = 2 };
enum { REPLY_STARTED = 1, REPLY_DONE = 2, REPLY_KILLED = 3, REPLY_PUT = 4 };
/* Where set-up failed. STAGE_EXEC alone can be the program's own fault. */
enum { STAGE_NONE, STAGE_REQUEST, STAGE_CLONE, STAGE_MOUNT, STAGE_CGROUP, STAGE_LIMIT,
       STAGE_PRIVILEGE, STAGE_SECCOMP, STAGE_EXEC, STAGE_FILE };

#define MAX_CASES 64
#define MAX_FDS 12
#define MAX_STRINGS 256
#define MESSAGE_BYTES 65536

struct request {
    uint32_t kind, argc, envc, mode;
    uint64_t cpu_s, file_bytes, stack_bytes, tmp_bytes, tmp_inodes;
};

struct reply {
    uint32_t kind;
    int32_t error, stage, wait_status;
    uint64_t wall_us, cpu_us, maxrss_kib;
};

struct running { pid_t pid; int pidfd, reply, result; };

static struct running cases[MAX_CASES];
static int case_count;

/* -- the filter ------------------------------------------------------------------------------ */

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "no system call filter for this machine: only x86_64 and aarch64 are supported"
#endif

#define MAX_FILTER 512
static struct sock_filter filter[MAX_FILTER];
static unsigned short filter_length;

static void emit(uint16_t code, uint8_t jt, uint8_t jf, uint32_t k) {
    if (filter_length == MAX_FILTER) _exit(90);
    filter[filter_length++] = (struct sock_filter){code, jt, jf, k};
}
#define LOAD(field) emit(BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)(field))
#define RETURN(value) emit(BPF_RET | BPF_K, 0, 0, (uint32_t)(value))
#define FAIL(number) (SECCOMP_RET_ERRNO | ((number) & SECCOMP_RET_DATA))
#define NR offsetof(struct seccomp_data, nr)
/* The low half of an argument: the kernel looks at no more of an ioctl's or fcntl's command. */
#define ARG(n) (offsetof(struct seccomp_data, args) + 8 * (n))

static void deny(long nr, int error) {
    emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (uint32_t)nr);
    RETURN(FAIL(error));
}

/* Refuse call `nr` when argument `arg` is one of `values`. */
static void deny_values(long nr, int arg, const uint32_t *values, int count, int error) {
    emit(BPF_JMP | BPF_JEQ | BPF_K, 0, (uint8_t)(2 + 2 * count), (uint32_t)nr);
    LOAD(ARG(arg));
    for (int i = 0; i < count; i++) {
        emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, values[i]);
        RETURN(FAIL(error));
    }
    LOAD(NR);
}

static void build_filter(void) {
    static const long eperm[] = {
        SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_pidfd_open,
        SYS_pidfd_send_signal, SYS_pidfd_getfd, SYS_add_key, SYS_request_key, SYS_keyctl,
        SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_mount, SYS_umount2, SYS_pivot_root,
        SYS_chroot, SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig, SYS_fsmount,
        SYS_fspick, SYS_setns, SYS_unshare, SYS_name_to_handle_at, SYS_open_by_handle_at,
        SYS_clock_settime, SYS_settimeofday, SYS_adjtimex, SYS_clock_adjtime, SYS_flock,
        SYS_init_module, SYS_delete_module, SYS_finit_module, SYS_kexec_load, SYS_reboot,
        SYS_swapon, SYS_swapoff, SYS_acct, SYS_syslog, SYS_quotactl, SYS_lookup_dcookie,
        SYS_vhangup, SYS_sethostname, SYS_setdomainname, SYS_personality, SYS_move_pages,
        SYS_mbind, SYS_set_mempolicy, SYS_migrate_pages, SYS_fanotify_init,
        SYS_sched_setaffinity, SYS_sched_setattr, SYS_nfsservctl,
#ifdef SYS_mount_setattr
        SYS_mount_setattr,
#endif
#ifdef SYS_quotactl_fd
        SYS_quotactl_fd,
#endif
#ifdef SYS_kexec_file_load
        SYS_kexec_file_load,
#endif
#ifdef SYS_iopl
        SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_uselib,
#endif
    };
    static const long enosys[] = {
        SYS_clone3, /* its flags lie in memory, out of a filter's sight; libc falls back */
        SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
        447, /* memfd_secret */
    };
    static const uint32_t terminal[] = {0x5412 /* TIOCSTI */, 0x541C /* TIOCLINUX */, 0x5423};
    static const uint32_t locks[] = {F_GETLK, F_SETLK, F_SETLKW, 36, 37, 38 /* OFD locks */,
                                     1024 /* F_SETLEASE */, 1026 /* F_NOTIFY */};

    LOAD(offsetof(struct seccomp_data, arch));
    emit(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCH);
    RETURN(SECCOMP_RET_KILL_PROCESS);
    LOAD(NR);
#if defined(__x86_64__)
    emit(BPF_JMP | BPF_JGE | BPF_K, 0, 1, 0x40000000 /* x32 */);
    RETURN(SECCOMP_RET_KILL_PROCESS);
#endif
    for (size_t i = 0; i < sizeof eperm / sizeof *eperm; i++) deny(eperm[i], EPERM);
    for (size_t i = 0; i < sizeof enosys / sizeof *enosys; i++) deny(enosys[i], ENOSYS);
    deny_values(SYS_ioctl, 1, terminal, 3, EPERM);
    deny_values(SYS_fcntl, 1, locks, 8, EPERM);
    /* clone: no new namespaces */
    emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, SYS_clone);
    LOAD(ARG(0));
    emit(BPF_JMP | BPF_JSET | BPF_K, 0, 1, 0x7E020000 /* CLONE_NEW* */);
    RETURN(FAIL(EPERM));
    LOAD(NR);
    /* socket, socketpair: AF_UNIX only */
    emit(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, SYS_socket);
    emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 3, SYS_socketpair);
    LOAD(ARG(0));
    emit(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, AF_UNIX);
    RETURN(FAIL(EAFNOSUPPORT));
    RETURN(SECCOMP_RET_ALLOW);
}

/* -- small helpers --------------------------------------------------------------------------- */

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static uint64_t timeval_us(struct timeval t) {
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_usec;
}

/* Send a reply, with a descriptor if `fd` >= 0. A reader that has gone is no error of ours. */
static void answer(int to, const struct reply *reply, int fd) {
    struct iovec iov = {(void *)reply, sizeof *reply};
    union { struct cmsghdr head; char space[CMSG_SPACE(sizeof(int))]; } control;
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    while (sendmsg(to, &message, MSG_NOSIGNAL) < 0 && errno == EINTR) continue;
}

static void refuse(int to, uint32_t kind, int stage, int error) {
    struct reply reply = {.kind = kind, .stage = stage, .error = error};
    answer(to, &reply, -1);
}

/* -- one case -------------------------------------------------------------------------------- */

struct plan {
    const struct request *request;
    char **argv, **envp;
    const int *fds; /* stdin, stdout, stderr, cgroup.procs… */
    int fd_count;
};

static int set_limit(int what, uint64_t value) {
    struct rlimit limit = {value, value};
    return setrlimit(what, &limit);
}

/* Shared with the child of vfork: where and why it failed. */
static volatile int failed_stage, failed_errno;

static _Noreturn void give_up(int stage) {
    failed_errno = errno;
    failed_stage = stage;
    _exit(127);
}

static int drop_privileges(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    for (int cap = 0; cap < 64; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL) return -1;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) return -1;
    if (syscall(SYS_capset, &header, none) < 0) return -1;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* In the child of vfork: becomes the program. Only system calls, no memory of the parent but
 * the two failure words is written. */
static _Noreturn void become_program(const struct plan *plan) {
    const struct request *want = plan->request;
    for (int i = 3; i < plan->fd_count; i++)
        if (write(plan->fds[i], "0", 1) != 1) give_up(STAGE_CGROUP);
    for (int number = 1; number < 65; number++) signal(number, SIG_DFL);
    sigset_t nothing;
    sigemptyset(&nothing);
    sigprocmask(SIG_SETMASK, &nothing, NULL);
    setsid();
    umask(022);
    if (chdir("/box") < 0) give_up(STAGE_MOUNT);
    for (int i = 0; i < 3; i++)
        if (dup2(plan->fds[i], i) < 0) give_up(STAGE_REQUEST);
    if (syscall(SYS_close_range, 3u, ~0u, 4u /* CLOEXEC */) < 0) give_up(STAGE_REQUEST);
    if (set_limit(RLIMIT_CPU, want->cpu_s) < 0 || set_limit(RLIMIT_FSIZE, want->file_bytes) < 0 ||
        set_limit(RLIMIT_STACK, want->stack_bytes) < 0 || set_limit(RLIMIT_NOFILE, 256) < 0 ||
        set_limit(RLIMIT_CORE, 0) < 0 || set_limit(RLIMIT_MSGQUEUE, 0) < 0 ||
        set_limit(RLIMIT_MEMLOCK, 65536) < 0)
        give_up(STAGE_LIMIT);
    if (drop_privileges() < 0) give_up(STAGE_PRIVILEGE);
    struct sock_fprog program = {filter_length, filter};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0) give_up(STAGE_SECCOMP);
    execve(plan->argv[0], plan->argv, plan->envp);
    give_up(STAGE_EXEC);
}

static int mount_fresh(const char *where, const struct request *want) {
    char options[96];
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu,mode=1777",
             (unsigned long long)want->tmp_bytes, (unsigned long long)want->tmp_inodes);
    return mount("tmpfs", where, "tmpfs", MS_NOSUID | MS_NODEV, options);
}

static int prepare_mounts(const struct request *want) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return -1;
    if (mount_fresh("/tmp", want) < 0 || mount_fresh("/box", want) < 0 ||
        mount_fresh("/dev/shm", want) < 0)
        return -1;
    if (mount(NULL, "/w", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return -1;
    return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

/* pid 1 of the case. Writes its result to `result` and exits, which ends the namespace. */
static _Noreturn void reap(const struct plan *plan, int result) {
    struct reply reply = {.kind = REPLY_DONE};
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (prepare_mounts(plan->request) < 0) {
        reply.stage = STAGE_MOUNT;
        reply.error = errno;
    } else {
        pid_t child = vfork();
        if (child == 0) become_program(plan);
        uint64_t started = now_us();
        if (child < 0) {
            reply.stage = STAGE_CLONE;
            reply.error = errno;
        } else {
            /* The program holds the only copies now, so that end of file means its end. */
            for (int i = 0; i < plan->fd_count; i++) close(plan->fds[i]);
            struct rusage usage;
            int status;
            pid_t ended;
            do {
                ended = wait4(-1, &status, 0, &usage);
            } while (ended != child && (ended >= 0 || errno == EINTR));
            reply.wall_us = now_us() - started;
            reply.wait_status = status;
            reply.cpu_us = timeval_us(usage.ru_utime) + timeval_us(usage.ru_stime);
            reply.maxrss_kib = (uint64_t)usage.ru_maxrss;
            reply.stage = failed_stage;
            reply.error = failed_errno;
        }
    }
    if (write(result, &reply, sizeof reply) != sizeof reply) _exit(1);
    _exit(0);
}

/* Start the reaper of a case; init goes on at once. */
static void run_case(const struct plan *plan, int reply_fd) {
    int result[2], pidfd = -1;
    if (case_count == MAX_CASES || pipe2(result, O_CLOEXEC) < 0) {
        refuse(reply_fd, REPLY_DONE, STAGE_REQUEST, case_count == MAX_CASES ? EBUSY : errno);
        close(reply_fd);
        return;
    }
    struct clone_args args = {
        .flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
    };
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) reap(plan, result[1]);
    int error = errno;
    close(result[1]);
    if (pid < 0) {
        close(result[0]);
        refuse(reply_fd, REPLY_DONE, STAGE_CLONE, error);
        close(reply_fd);
        return;
    }
    fcntl(pidfd, F_SETFD, FD_CLOEXEC);
    cases[case_count++] = (struct running){(pid_t)pid, pidfd, reply_fd, result[0]};
    struct reply started = {.kind = REPLY_STARTED};
    answer(reply_fd, &started, pidfd);
}

/* The reaper has exited, so nothing of the case is left: answer, and forget the case. */
static void finish_case(int index) {
    struct running ended = cases[index];
    int status;
    while (waitpid(ended.pid, &status, 0) < 0 && errno == EINTR) continue;
    struct reply reply;
    if (read(ended.result, &reply, sizeof reply) != sizeof reply)
        reply = (struct reply){.kind = REPLY_KILLED}; /* by the agent, through the pidfd */
    answer(ended.reply, &reply, -1);
    close(ended.result);
    close(ended.reply);
    close(ended.pidfd);
    cases[index] = cases[--case_count];
}

/* -- the job's files -------------------------------------------------------------------------- */

static int copy_to(const char *path, int source, mode_t mode) {
    static char block[1 << 16];
    char where[512];
    if (snprintf(where, sizeof where, "/w/%s", path) >= (int)sizeof where) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (char *slash = where + 3; (slash = strchr(slash, '/')) != NULL; *slash++ = '/') {
        *slash = 0;
        if (mkdir(where, 0755) < 0 && errno != EEXIST) return -1;
    }
    int target = open(where, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (target < 0) return -1;
    ssize_t got;
    while ((got = read(source, block, sizeof block)) > 0) {
        for (ssize_t done = 0; done < got;) {
            ssize_t put = write(target, block + done, (size_t)(got - done));
            if (put < 0) {
                int error = errno;
                close(target);
                errno = error;
                return -1;
            }
            done += put;
        }
    }
    return close(target) < 0 || got < 0 ? -1 : 0;
}

/* -- requests --------------------------------------------------------------------------------- */

/* Split `count` strings out of [*at, end) into `out`, which ends with a NULL; -1 if there are
 * fewer. */
static int take_strings(char **at, const char *end, uint32_t count, char **out) {
    if (count >= MAX_STRINGS) return -1;
    for (uint32_t i = 0; i < count; i++) {
        char *stop = memchr(*at, 0, (size_t)(end - *at));
        if (stop == NULL) return -1;
        out[i] = *at;
        *at = stop + 1;
    }
    out[count] = NULL;
    return 0;
}

static void serve(char *message, size_t length, const int *fds, int fd_count) {
    static char *argv[MAX_STRINGS], *envp[MAX_STRINGS];
    struct request want;
    int reply_fd = fds[0]; /* there is always one, or the request is dropped */
    int kept = 0;
    if (length < sizeof want) {
        refuse(reply_fd, REPLY_DONE, STAGE_REQUEST, EBADMSG);
    } else {
        memcpy(&want, message, sizeof want);
        char *at = message + sizeof want;
        const char *end = message + length;
        if (take_strings(&at, end, want.argc, argv) < 0 ||
            take_strings(&at, end, want.envc, envp) < 0 || want.argc == 0) {
            refuse(reply_fd, REPLY_DONE, STAGE_REQUEST, EBADMSG);
        } else if (want.kind == KIND_PUT && fd_count == 2) {
            int bad = copy_to(argv[0], fds[1], (mode_t)want.mode) < 0;
            refuse(reply_fd, REPLY_PUT, bad ? STAGE_FILE : STAGE_NONE, bad ? errno : 0);
        } else if (want.kind == KIND_RUN && fd_count >= 4) {
            struct plan plan = {&want, argv, envp, fds + 1, fd_count - 1};
            run_case(&plan, reply_fd);
            kept = 1;
        } else {
            refuse(reply_fd, REPLY_DONE, STAGE_REQUEST, EINVAL);
        }
    }
    for (int i = kept; i < fd_count; i++) close(fds[i]);
}

static void receive(int sock) {
    static char message[MESSAGE_BYTES];
    union { struct cmsghdr head; char space[CMSG_SPACE(MAX_FDS * sizeof(int))]; } control;
    struct iovec iov = {message, sizeof message};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                            .msg_controllen = sizeof control};
    ssize_t length = recvmsg(sock, &header, MSG_CMSG_CLOEXEC);
    if (length < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (length <= 0) _exit(0); /* the agent has gone: the whole pid namespace ends with us */
    int fds[MAX_FDS], fd_count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c != NULL; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        fd_count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(c), (size_t)fd_count * sizeof(int));
    }
    if (fd_count == 0) return;
    serve(message, (size_t)length, fds, fd_count);
}

int main(int argc, char **argv) {
    if (argc != 2) return 64;
    int sock = atoi(argv[1]);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    signal(SIGPIPE, SIG_IGN);
    build_filter();
    for (;;) {
        struct pollfd polled[1 + MAX_CASES] = {{.fd = sock, .events = POLLIN}};
        for (int i = 0; i < case_count; i++)
            polled[1 + i] = (struct pollfd){.fd = cases[i].pidfd, .events = POLLIN};
        int watched = case_count;
        if (poll(polled, (nfds_t)(1 + watched), -1) < 0) continue;
        for (int i = watched - 1; i >= 0; i--)
            if (polled[1 + i].revents) finish_case(i);
        if (polled[0].revents) receive(sock);
    }
}
