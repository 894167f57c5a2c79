/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See sandbox.h. New groups are made inside (socket, bind, lchown to a group that main.c joined),
 * new segments too (memfd_create, and a read-only re-open through /proc/self/fd).
 */
#include "sandbox.h"

#include <cap-ng.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

static const int allowed_calls[] = {
    /* the loop, and waiting */
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(setitimer),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(futex),
    /* sockets; socket() itself below */
    SCMP_SYS(accept4),
    SCMP_SYS(bind),
    SCMP_SYS(connect),
    SCMP_SYS(getsockopt),
    SCMP_SYS(listen),
    SCMP_SYS(recvfrom),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(setsockopt),
    SCMP_SYS(shutdown),
    /* files: socket paths, /proc/PID/cgroup, segments */
    SCMP_SYS(chmod),
    SCMP_SYS(close),
    SCMP_SYS(eventfd2),
    SCMP_SYS(fallocate),
    SCMP_SYS(fchmod),
    SCMP_SYS(fchmodat),
    SCMP_SYS(fchownat),
    SCMP_SYS(fcntl),
    SCMP_SYS(fstat),
    SCMP_SYS(ftruncate),
    SCMP_SYS(lchown),
    SCMP_SYS(lseek),
    SCMP_SYS(lstat),
    SCMP_SYS(memfd_create),
    SCMP_SYS(newfstatat),
    SCMP_SYS(open),
    SCMP_SYS(openat),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(read),
    SCMP_SYS(readv),
    SCMP_SYS(stat),
    SCMP_SYS(statx),
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    /* memory; mmap(), mprotect() and userfaultfd() below */
    SCMP_SYS(brk),
    SCMP_SYS(madvise),
    SCMP_SYS(mremap),
    SCMP_SYS(munmap),
    /* the C library, signals, the end */
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(getegid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getpid),
    SCMP_SYS(getppid),
    SCMP_SYS(getrandom),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sysinfo),
    SCMP_SYS(tgkill),
};

/* What fills segments: see segment.c. */
static const uint64_t allowed_ioctls[] = {UFFDIO_API, UFFDIO_REGISTER, UFFDIO_CONTINUE, UFFDIO_UNREGISTER};

static int drop_capabilities(MshError *error)
{
    /* The bounding set needs a capability itself; without it NO_NEW_PRIVS is what keeps the set out
     * of reach. Asked, not tried: libcap-ng would complain in the log. */
    const bool may_bound = capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP) == 1;

    capng_clear(CAPNG_SELECT_BOTH);
    if (capng_apply(may_bound ? CAPNG_SELECT_BOTH : CAPNG_SELECT_CAPS) < 0)
        return msh_error_set(error, -EPERM, "cannot drop capabilities");
    return 0;
}

static int add_rules(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp not_executable = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    const struct scmp_arg_cmp for_itself =
        SCMP_A0(SCMP_CMP_MASKED_EQ, UFFD_USER_MODE_ONLY, UFFD_USER_MODE_ONLY);
    int result = 0;

    for (size_t i = 0; result == 0 && i < sizeof(allowed_calls) / sizeof(allowed_calls[0]); i++) {
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_calls[i], 0);
        if (result == -EDOM)
            result = 0; /* a call that this architecture does not have */
    }
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, not_executable);
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, not_executable);
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1,
                                  SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
    if (result == 0)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(userfaultfd), 1, for_itself);
    for (size_t i = 0; result == 0 && i < sizeof(allowed_ioctls) / sizeof(allowed_ioctls[0]); i++)
        result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                                  SCMP_A1(SCMP_CMP_EQ, allowed_ioctls[i]));
    return result;
}

int msh_sandbox_enter(MshError *error)
{
    scmp_filter_ctx filter;
    int result = drop_capabilities(error);

    if (result < 0)
        return result;
    filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (filter == NULL)
        return msh_error_set(error, -ENOMEM, "seccomp: no memory");
    result = add_rules(filter);
    if (result == 0)
        result = seccomp_load(filter); /* sets NO_NEW_PRIVS, too */
    seccomp_release(filter);
    if (result < 0)
        return msh_error_set(error, result, "seccomp: %s", strerror(-result));
    return 0;
}
