/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memshared, the broker: opens what it needs, gives up its privileges, serves until it is told to
 * end.
 *
 * One thread. Order at start: options, everything that needs privileges, sockets, sandbox, READY=1.
 * Exit codes: 0 told to end · 1 cannot run · 2 wrong usage. See broker.h for the error rule.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "broker.h"
#include "control.h"
#include "sandbox.h"
#include "service.h"

#define UFFD_DEVICE "/dev/userfaultfd"

typedef struct Daemon {
    MshBroker broker;
    MshControl control;
    MshSource signals;
    char default_control_path[MSH_SOCKET_PATH_BYTES];
} Daemon;

static int fail(const MshError *error, int exit_code)
{
    fprintf(stderr, "memshared: error: %s\n", error->text);
    return exit_code;
}

/* Only there to interrupt: exchange.c tells what. */
static void on_alarm(int signal_number)
{
    (void)signal_number;
}

static void signal_ready(MshSource *source, uint32_t epoll_events)
{
    Daemon *self = MSH_CONTAINER(source, Daemon, signals);
    struct signalfd_siginfo info;

    (void)epoll_events;
    if (read(source->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return;
    msh_log_info("stopping signal=%u", info.ssi_signo);
    self->broker.loop.stopping = true;
}

static int set_up_signals(Daemon *self, MshError *error)
{
    const struct sigaction ignore = {.sa_handler = SIG_IGN};
    const struct sigaction alarm = {.sa_handler = on_alarm}; /* no SA_RESTART */
    sigset_t ending;
    int fd, result;

    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGALRM, &alarm, NULL);
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    sigprocmask(SIG_SETMASK, &ending, NULL);
    fd = signalfd(-1, &ending, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return msh_error_set(error, -errno, "signalfd: %s", strerror(errno));
    result = msh_loop_watch(&self->broker.loop, &self->signals, fd, EPOLLIN, signal_ready);
    if (result < 0) {
        close(fd);
        return msh_error_set(error, result, "epoll: %s", strerror(-result));
    }
    return 0;
}

/* Descriptors: four a session, one a segment. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static int open_runtime_dir(const MshOptions *options, MshError *error)
{
    if (mkdir(options->runtime_dir, 0755) == 0) {
        /* The umask is 0077; guests must be able to enter. */
        if (chmod(options->runtime_dir, 0755) < 0)
            return msh_error_set(error, -errno, "%s: %s", options->runtime_dir, strerror(errno));
    } else if (errno != EEXIST) {
        return msh_error_set(error, -errno, "cannot make %s: %s", options->runtime_dir,
                             strerror(errno));
    }
    return 0;
}

/* A member of the sockets' group may give them to it without any capability, also later, inside the
 * sandbox. Whoever may not set groups must be a member already. */
static void join_socket_group(const MshOptions *options)
{
    if (options->socket_group != MSH_NO_GROUP)
        (void)setgroups(1, &options->socket_group);
}

static void open_uffd_device(MshBroker *broker)
{
    broker->uffd_device_fd = open(UFFD_DEVICE, O_RDWR | O_CLOEXEC);
    if (broker->uffd_device_fd >= 0)
        return;
    broker->uffd_device_fd = -errno;
    msh_log_error("device_missing path=" UFFD_DEVICE
                  " reason=\"%s\" effect=\"every client is refused\"",
                  strerror(errno));
}

static int set_control_path(Daemon *self, MshError *error)
{
    MshOptions *options = &self->broker.options;

    if (options->control_path != NULL)
        return 0;
    if (snprintf(self->default_control_path, sizeof(self->default_control_path), "%s/control.sock",
                 options->runtime_dir) >= (int)sizeof(self->default_control_path))
        return msh_error_set(error, -ENAMETOOLONG, "--runtime-dir %s: too long for sockets in it",
                             options->runtime_dir);
    options->control_path = self->default_control_path;
    return 0;
}

static void end_services(MshBroker *broker)
{
    MshService *service;

    while ((service = TAILQ_FIRST(&broker->services)) != NULL)
        msh_service_end(service);
}

static int serve(Daemon *self, MshError *error)
{
    MshBroker *broker = &self->broker;
    int result = msh_control_init(&self->control, broker, error);

    if (result < 0)
        return result;
    for (unsigned i = 0; result == 0 && i < broker->options.group_count; i++)
        result = msh_service_new(broker, broker->options.groups[i], error);
    if (result == 0 && !broker->options.no_sandbox)
        result = msh_sandbox_enter(error);
    if (result == 0) {
        msh_log_info("started version=%s pid=%d groups=%u admission=%s sandbox=%s control=%s",
                     MSH_VERSION, (int)getpid(), broker->options.group_count,
                     broker->options.allow_by_mode ? "mode" : "announced",
                     broker->options.no_sandbox ? "off" : "on", broker->options.control_path);
        sd_notify(0, "READY=1");
        result = msh_loop_run(&broker->loop);
        if (result < 0)
            msh_error_set(error, result, "epoll: %s", strerror(-result));
        sd_notify(0, "STOPPING=1");
    }
    end_services(broker);
    msh_control_fini(&self->control);
    return result;
}

static int run(Daemon *self, MshError *error)
{
    MshBroker *broker = &self->broker;
    int result;

    umask(0077);
    msh_log_set_level(broker->options.log_level);
    msh_admission_init(&broker->admission, broker->options.allow_by_mode);
    TAILQ_INIT(&broker->services);
    TAILQ_INIT(&broker->ringing);
    result = set_control_path(self, error);
    if (result == 0)
        result = msh_peer_probe(error);
    if (result == 0)
        result = open_runtime_dir(&broker->options, error);
    if (result < 0)
        return result;
    raise_descriptor_limit();
    join_socket_group(&broker->options);
    result = msh_loop_init(&broker->loop);
    if (result < 0)
        return msh_error_set(error, result, "epoll: %s", strerror(-result));
    result = set_up_signals(self, error);
    if (result == 0) {
        open_uffd_device(broker);
        result = serve(self, error);
        if (broker->uffd_device_fd >= 0)
            close(broker->uffd_device_fd);
    }
    msh_loop_close(&broker->loop, &self->signals);
    msh_loop_fini(&broker->loop);
    msh_admission_fini(&broker->admission);
    return result;
}

int main(int argc, char **argv)
{
    Daemon self = {.signals.fd = -1, .control.listener.source.fd = -1};
    MshError error = {{0}};
    int result = msh_options_parse(&self.broker.options, argc, argv, &error);

    if (result < 0)
        return fail(&error, 2);
    if (result == MSH_E_OPTIONS_DONE)
        return 0;
    result = run(&self, &error);
    msh_options_fini(&self.broker.options);
    return result < 0 ? fail(&error, 1) : 0;
}
