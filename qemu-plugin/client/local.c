/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An exchange with a group of the engine's own: what a broker does, without the broker. It serves
 * processes that share within themselves only, and tests.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>

#include "exchange.h"
#include "group.h"

typedef struct MshLocal {
    MshExchange exchange;
    MshGroup *group;
    MshMember *member;
    bool is_announced;
    bool is_refused;
    uint8_t page[MSH_PAGE_BYTES];
} MshLocal;

/* In local numbering; opens a view at the first match. */
static bool to_local(MshLocal *local, MshSlot slot, MshSlot *ret_slot)
{
    MshExchange *exchange = &local->exchange;
    uint32_t segment = msh_slot_segment(slot), number = 0;
    if (msh_views_find(exchange->views, segment, &number) < 0) {
        int fd = msh_member_show(local->member, segment);
        if (fd < 0 || msh_views_open(exchange->views, segment, fd, &number) < 0)
            return false;
    }
    *ret_slot = msh_slot(number, msh_slot_position(slot));
    return msh_view_holds(exchange->views->view[number], *ret_slot);
}

static bool pass_match(MshLocal *local, uint32_t frame, MshSlot slot)
{
    MshSlot here;
    if (!to_local(local, slot, &here))
        return false;
    local->exchange.events.match(local->exchange.events.opaque, frame, here);
    return true;
}

static bool on_hint(void *opaque, MshMember *member, MshFrame frame, MshSlot slot)
{
    (void)opaque;
    return pass_match(msh_member_opaque(member), frame.number, slot);
}

static void on_retired(void *opaque, MshMember *member, uint32_t segment)
{
    (void)opaque;
    MshLocal *local = msh_member_opaque(member);
    uint32_t number;
    if (msh_views_find(local->exchange.views, segment, &number) == 0 &&
        msh_views_retire(local->exchange.views, number))
        local->exchange.events.emptying(local->exchange.events.opaque);
}

static void on_emptying(void *opaque, MshMember *member, uint32_t segment)
{
    (void)opaque;
    MshLocal *local = msh_member_opaque(member);
    uint32_t number;
    if (msh_views_find(local->exchange.views, segment, &number) == 0 &&
        msh_views_leave(local->exchange.views, number))
        local->exchange.events.emptying(local->exchange.events.opaque);
}

static bool local_poll(MshExchange *exchange)
{
    MshLocal *local = (MshLocal *)exchange;
    if (!local->is_announced) {
        local->is_announced = true;
        local->is_refused = exchange->events.connected(exchange->events.opaque,
                                                       msh_group_secret(local->group), -1) < 0;
    }
    return !local->is_refused;
}

static void local_sight(MshExchange *exchange, const MshSighting *sightings, size_t count)
{
    MshLocal *local = (MshLocal *)exchange;
    for (size_t i = 0; i < count; i++) {
        MshFrame frame = msh_frame(sightings[i].frame);
        MshSlot slot;
        MshAnswer answer = msh_group_sight(local->member, sightings[i].hash, frame, &slot);
        if (answer == MSH_ANSWER_PROVIDE &&
            exchange->events.copy_page(exchange->events.opaque, frame.number, local->page))
            answer = msh_group_provide(local->member, sightings[i].hash, frame, local->page, &slot);
        if (answer == MSH_ANSWER_MATCH && !pass_match(local, frame.number, slot))
            msh_group_release(local->member, slot);
    }
}

static void local_release(MshExchange *exchange, const MshSlot *slots, size_t count)
{
    MshLocal *local = (MshLocal *)exchange;
    for (size_t i = 0; i < count; i++) {
        const MshView *view = msh_views_of(exchange->views, slots[i]);
        if (view)
            msh_group_release(local->member, msh_slot(view->segment, msh_slot_position(slots[i])));
    }
}

static bool local_account(MshExchange *exchange, MshAccount *ret_account)
{
    const MshMember *member = ((MshLocal *)exchange)->member;
    *ret_account = (MshAccount){.cost_bytes = msh_member_cost_bytes(member),
                                .missed = msh_member_missed(member)};
    return true;
}

static void local_forget(MshExchange *exchange, uint32_t segment)
{
    msh_member_forgot(((MshLocal *)exchange)->member, segment);
}

static void local_wait(MshExchange *exchange, int wake_fd, uint64_t timeout_ns)
{
    (void)exchange;
    struct pollfd wait = {.fd = wake_fd, .events = POLLIN};
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};
    ppoll(&wait, 1, &timeout, NULL);
}

static MshExchange *local_free(MshExchange *exchange)
{
    MshLocal *local = (MshLocal *)exchange;
    msh_group_leave(local->member);
    msh_group_free(local->group);
    free(local);
    return NULL;
}

int msh_local_new(const char *group, MshViews *views, const MshExchangeEvents *events,
                  MshExchange **ret_exchange, MshError *error)
{
    static const MshExchangeVerbs verbs = {
        .poll = local_poll,
        .sight = local_sight,
        .release = local_release,
        .account = local_account,
        .forget = local_forget,
        .wait = local_wait,
        .free = local_free,
    };
    MshLocal *local = calloc(1, sizeof *local);
    if (!local)
        return msh_error_set(error, -ENOMEM, "out of memory");
    local->exchange = (MshExchange){.verbs = &verbs, .events = *events, .views = views};
    MshGroupEvents group_events = {.hint = on_hint, .retired = on_retired, .emptying = on_emptying};
    int result = msh_group_new(group, &(MshGroupLimits){0}, &group_events, &local->group, error);
    if (result == 0) {
        result = msh_group_join(local->group, local, &local->member);
        if (result < 0)
            msh_error_set(error, result, "out of memory");
    }
    if (result < 0) {
        msh_group_free(local->group);
        free(local);
        return result;
    }
    *ret_exchange = &local->exchange;
    return 0;
}
