/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See control.h. While an answer is not yet taken no further command is read: a client that does
 * not read holds one answer of ours, no more.
 */
#include "control.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "commands.h"

#define LINE_BYTES_MAX 65536u
#define CLIENTS_MAX 32u

struct MshControlClient {
    TAILQ_ENTRY(MshControlClient) link;
    MshControl *control;
    MshSource source;
    MshTask burial;
    char *answer; /* NULL: none to be sent */
    size_t answer_bytes, answer_sent_bytes;
    size_t used_bytes;
    char input[LINE_BYTES_MAX];
};

static void bury(MshTask *task)
{
    free(MSH_CONTAINER(task, MshControlClient, burial));
}

static void drop(MshControlClient *client)
{
    MshControl *control = client->control;

    msh_loop_close(&control->broker->loop, &client->source);
    free(client->answer);
    client->answer = NULL;
    TAILQ_REMOVE(&control->clients, client, link);
    control->client_count--;
    msh_loop_defer(&control->broker->loop, &client->burial, 0);
}

/* 0 all sent · -EAGAIN · other -errno: drop the client. */
static int send_answer(MshControlClient *client)
{
    while (client->answer_sent_bytes < client->answer_bytes) {
        ssize_t sent =
            send(client->source.fd, client->answer + client->answer_sent_bytes,
                 client->answer_bytes - client->answer_sent_bytes, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0)
            return -errno;
        client->answer_sent_bytes += (size_t)sent;
    }
    free(client->answer);
    client->answer = NULL;
    return 0;
}

/* Answers the lines that are there. As send_answer. */
static int take_lines(MshControlClient *client)
{
    int result = 0;

    while (result == 0) {
        char *end = memchr(client->input, '\n', client->used_bytes);
        size_t line_bytes;

        if (end == NULL)
            break;
        line_bytes = (size_t)(end - client->input);
        client->answer = msh_command_run(client->control->broker, client->input, line_bytes,
                                         &client->answer_bytes);
        client->answer_sent_bytes = 0;
        client->used_bytes -= line_bytes + 1;
        memmove(client->input, end + 1, client->used_bytes);
        result = send_answer(client);
    }
    if (result == 0 && client->used_bytes == LINE_BYTES_MAX) {
        static const char too_long[] =
            "{\"ok\":false,\"error\":\"line is longer than 65536 bytes\"}\n";

        (void)send(client->source.fd, too_long, sizeof(too_long) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        return -E2BIG;
    }
    return result;
}

static void client_ready(MshSource *source, uint32_t epoll_events)
{
    MshControlClient *client = MSH_CONTAINER(source, MshControlClient, source);
    MshLoop *loop = &client->control->broker->loop;
    int result = 0;

    if (client->answer != NULL)
        result = send_answer(client);
    if (result == 0)
        result = take_lines(client);
    if (result == 0 && (epoll_events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        ssize_t got = recv(source->fd, client->input + client->used_bytes,
                           LINE_BYTES_MAX - client->used_bytes, MSG_DONTWAIT);

        if (got > 0) {
            client->used_bytes += (size_t)got;
            result = take_lines(client);
        } else if (got == 0 || errno != EAGAIN) {
            result = -ECONNRESET;
        }
    }
    if (result == 0)
        msh_loop_change(loop, source, EPOLLIN);
    else if (result == -EAGAIN)
        msh_loop_change(loop, source, EPOLLOUT);
    else
        drop(client);
}

static void listener_ready(MshSource *source, uint32_t epoll_events)
{
    MshListener *listener = MSH_CONTAINER(source, MshListener, source);
    MshControl *control = MSH_CONTAINER(listener, MshControl, listener);
    MshControlClient *client;
    int fd = msh_listener_accept(listener);

    (void)epoll_events;
    if (fd < 0)
        return;
    if (control->client_count == CLIENTS_MAX) {
        msh_log_error("control_connection_dropped reason=\"%u are open already\"", CLIENTS_MAX);
        close(fd);
        return;
    }
    client = calloc(1, sizeof(*client));
    assert(client != NULL);
    client->control = control;
    client->source.fd = -1;
    client->burial.run = bury;
    if (msh_loop_watch(&control->broker->loop, &client->source, fd, EPOLLIN, client_ready) < 0) {
        close(fd);
        free(client);
        return;
    }
    TAILQ_INSERT_TAIL(&control->clients, client, link);
    control->client_count++;
}

int msh_control_init(MshControl *control, MshBroker *broker, MshError *error)
{
    int passed_fd, result;

    control->broker = broker;
    control->client_count = 0;
    TAILQ_INIT(&control->clients);
    result = msh_listener_passed(SOCK_STREAM, &passed_fd, error);
    if (result < 0)
        return result;
    if (passed_fd >= 0) {
        result = msh_listener_adopt(&broker->loop, &control->listener, passed_fd, listener_ready,
                                    error);
        broker->options.control_path = control->listener.path;
        return result;
    }
    return msh_listener_open(&broker->loop, &control->listener, broker->options.control_path,
                             SOCK_STREAM, 0600, MSH_NO_GROUP, listener_ready, error);
}

void msh_control_fini(MshControl *control)
{
    MshControlClient *client;

    msh_listener_close(&control->broker->loop, &control->listener);
    while ((client = TAILQ_FIRST(&control->clients)) != NULL)
        drop(client);
}
