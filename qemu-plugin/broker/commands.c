/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See commands.h.
 */
#include "commands.h"

#include <assert.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "codec.h"
#include "service.h"
#include "session.h"

/*
 * Arguments
 */

/* NULL, and error is set, when it is not there or not a text. */
static const char *text_argument(struct json_object *arguments, const char *key, MshError *error)
{
    struct json_object *value;
    const char *text;

    if (!json_object_object_get_ex(arguments, key, &value) ||
        !json_object_is_type(value, json_type_string)) {
        msh_error_set(error, -EINVAL, "\"%s\" must be a string", key);
        return NULL;
    }
    text = json_object_get_string(value);
    if (strlen(text) != (size_t)json_object_get_string_len(value)) {
        msh_error_set(error, -EINVAL, "\"%s\" contains a zero byte", key);
        return NULL;
    }
    return text;
}

static int flag_argument(struct json_object *arguments, const char *key, bool *ret_flag,
                         MshError *error)
{
    struct json_object *value;

    if (!json_object_object_get_ex(arguments, key, &value)) {
        *ret_flag = false;
        return 0;
    }
    if (!json_object_is_type(value, json_type_boolean))
        return msh_error_set(error, -EINVAL, "\"%s\" must be true or false", key);
    *ret_flag = json_object_get_boolean(value) != 0;
    return 0;
}

static MshService *group_argument(MshBroker *broker, struct json_object *arguments, MshError *error)
{
    const char *name = text_argument(arguments, "group", error);
    MshService *service;

    if (name == NULL || msh_group_name_check(name, error) < 0)
        return NULL;
    service = msh_service_find(broker, name);
    if (service == NULL)
        msh_error_set(error, -ENOENT, "no group %s is served here", name);
    return service;
}

/*
 * Status
 */

static void add_number(struct json_object *object, const char *key, uint64_t value)
{
    json_object_object_add(object, key, json_object_new_uint64(value));
}

static void add_text(struct json_object *object, const char *key, const char *value)
{
    json_object_object_add(object, key, json_object_new_string(value));
}

static struct json_object *describe_session(const MshSession *session)
{
    struct json_object *facts = json_object_new_object();
    const MshMember *member = session->member;

    add_text(facts, "guest", session->guest_name);
    add_text(facts, "state", msh_session_state_name(session));
    add_number(facts, "pid", (uint64_t)session->peer.pid);
    add_number(facts, "uid", session->peer.uid);
    add_number(facts, "grants", member != NULL ? msh_member_grants(member) : 0);
    add_number(facts, "cost_bytes", member != NULL ? msh_member_cost_bytes(member) : 0);
    return facts;
}

static struct json_object *describe_group(const MshService *service)
{
    struct json_object *facts = json_object_new_object();
    struct json_object *sessions = json_object_new_array();
    const MshSession *session;
    MshGroupStats stats;

    msh_group_stats(service->group, &stats);
    add_text(facts, "name", msh_group_name(service->group));
    add_text(facts, "socket", service->listener.path);
    add_number(facts, "members", stats.members);
    add_number(facts, "segments", stats.segments);
    add_number(facts, "store_bytes", stats.store_bytes);
    add_number(facts, "slots_live", stats.slots_live);
    add_number(facts, "slots_dead", stats.slots_dead);
    add_number(facts, "grants", stats.grants);
    add_number(facts, "table_entries", stats.table_entries);
    add_number(facts, "table_bytes", stats.table_bytes);
    add_number(facts, "sightings", stats.sightings);
    add_number(facts, "provides", stats.provides);
    add_number(facts, "rejected_provides", stats.rejected_provides);
    add_number(facts, "matches", stats.matches);
    add_number(facts, "releases", stats.releases);
    add_number(facts, "bad_releases", stats.bad_releases);
    add_number(facts, "refused_full", stats.refused_full);
    TAILQ_FOREACH(session, &service->sessions, link)
    json_object_array_add(sessions, describe_session(session));
    json_object_object_add(facts, "sessions", sessions);
    return facts;
}

static struct json_object *describe_allowed(const MshAdmission *admission)
{
    struct json_object *list = json_object_new_array();
    const MshAllowed *allowed;

    TAILQ_FOREACH(allowed, &admission->allowed, link)
    {
        struct json_object *facts = json_object_new_object();

        add_text(facts, "uuid", allowed->uuid);
        add_text(facts, "group", allowed->group);
        add_text(facts, "cgroup", allowed->cgroup);
        json_object_array_add(list, facts);
    }
    return list;
}

static int command_status(MshBroker *broker, struct json_object *arguments,
                          struct json_object *answer, MshError *error)
{
    struct json_object *groups = json_object_new_array();
    const MshService *service;

    (void)arguments;
    (void)error;
    add_text(answer, "version", MSH_VERSION);
    add_number(answer, "protocol", MSH_PROTOCOL_NEWEST);
    add_number(answer, "pid", (uint64_t)getpid());
    TAILQ_FOREACH(service, &broker->services, link)
    json_object_array_add(groups, describe_group(service));
    json_object_object_add(answer, "groups", groups);
    json_object_object_add(answer, "allowed", describe_allowed(&broker->admission));
    return 0;
}

/*
 * Audit
 */

static int command_audit(MshBroker *broker, struct json_object *arguments,
                         struct json_object *answer, MshError *error)
{
    const MshService *service = group_argument(broker, arguments, error);
    struct json_object *texts;
    const MshSession *session;
    uint64_t members = 0;
    MshGroupStats stats;
    MshAudit audit = {0};

    if (service == NULL)
        return -EINVAL;
    if (msh_group_audit(service->group, &audit) < 0)
        return msh_error_set(error, -ENOMEM, "no memory for an audit");
    TAILQ_FOREACH(session, &service->sessions, link)
    {
        members += session->member != NULL;
        if ((session->member != NULL) != (session->state != MSH_SESSION_GREETING))
            msh_audit_add(&audit, "session of pid %d is %s and %s a member", (int)session->peer.pid,
                          msh_session_state_name(session), session->member != NULL ? "is" : "is not");
    }
    msh_group_stats(service->group, &stats);
    msh_audit_compare(&audit, "sessions with a member", stats.members, members);
    add_text(answer, "group", msh_group_name(service->group));
    add_number(answer, "slots", audit.slots);
    add_number(answer, "grants", audit.grants);
    add_number(answer, "entries", audit.entries);
    add_number(answer, "hashed_slots", audit.hashed);
    add_number(answer, "problem_count", audit.problems);
    texts = json_object_new_array();
    for (uint64_t i = 0; i < audit.problems && i < MSH_AUDIT_TEXTS; i++)
        json_object_array_add(texts, json_object_new_string(audit.texts[i]));
    json_object_object_add(answer, "problems", texts);
    return 0;
}

/*
 * Steering
 */

static int command_allow(MshBroker *broker, struct json_object *arguments,
                         struct json_object *answer, MshError *error)
{
    const MshService *service = group_argument(broker, arguments, error);
    const char *uuid, *cgroup;
    int result;

    (void)answer;
    if (service == NULL)
        return -EINVAL;
    uuid = text_argument(arguments, "uuid", error);
    if (uuid == NULL)
        return -EINVAL;
    cgroup = text_argument(arguments, "cgroup", error);
    if (cgroup == NULL)
        return -EINVAL;
    result = msh_admission_allow(&broker->admission, uuid, msh_group_name(service->group), cgroup,
                                 error);
    if (result == 0)
        msh_log_info("guest_allowed uuid=%s group=%s cgroup=\"%s\"", uuid,
                     msh_group_name(service->group), cgroup);
    return result;
}

static int command_forget(MshBroker *broker, struct json_object *arguments,
                          struct json_object *answer, MshError *error)
{
    const char *uuid = text_argument(arguments, "uuid", error);
    int result;

    (void)answer;
    if (uuid == NULL)
        return -EINVAL;
    result = msh_admission_forget(&broker->admission, uuid, error);
    if (result == 0)
        msh_log_info("guest_forgotten uuid=%s", uuid);
    return result;
}

static int command_group_add(MshBroker *broker, struct json_object *arguments,
                             struct json_object *answer, MshError *error)
{
    const char *name = text_argument(arguments, "group", error);

    (void)answer;
    return name == NULL ? -EINVAL : msh_service_new(broker, name, error);
}

static int command_group_remove(MshBroker *broker, struct json_object *arguments,
                                struct json_object *answer, MshError *error)
{
    MshService *service = group_argument(broker, arguments, error);
    bool force = false;
    int result;

    (void)answer;
    if (service == NULL)
        return -EINVAL;
    result = flag_argument(arguments, "force", &force, error);
    if (result < 0)
        return result;
    if (!force && !TAILQ_EMPTY(&service->sessions))
        return msh_error_set(error, -EBUSY, "group %s has sessions; \"force\":true ends them",
                             msh_group_name(service->group));
    msh_service_end(service);
    return 0;
}

static int command_log_level(MshBroker *broker, struct json_object *arguments,
                             struct json_object *answer, MshError *error)
{
    const char *name = text_argument(arguments, "level", error);
    MshLogLevel level;

    (void)broker;
    (void)answer;
    if (name == NULL)
        return -EINVAL;
    if (msh_log_level_parse(name, &level) < 0)
        return msh_error_set(error, -EINVAL, "\"level\" must be error, info or debug");
    msh_log_set_level(level);
    return 0;
}

static const struct {
    const char *name;
    int (*run)(MshBroker *broker, struct json_object *arguments, struct json_object *answer,
               MshError *error);
} commands[] = {
    {"status", command_status},
    {"audit", command_audit},
    {"allow", command_allow},
    {"forget", command_forget},
    {"group-add", command_group_add},
    {"group-remove", command_group_remove},
    {"log-level", command_log_level},
};

static int run_object(MshBroker *broker, struct json_object *arguments, struct json_object *answer,
                      MshError *error)
{
    const char *name;

    if (!json_object_is_type(arguments, json_type_object))
        return msh_error_set(error, -EINVAL, "not a JSON object on one line");
    name = text_argument(arguments, "command", error);
    if (name == NULL)
        return -EINVAL;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].run(broker, arguments, answer, error);
    }
    return msh_error_set(error, -EINVAL,
                         "unknown command; known are status, audit, allow, forget, "
                         "group-add, group-remove and log-level");
}

static struct json_object *parse_line(const char *line, size_t line_bytes)
{
    struct json_tokener *tokener = json_tokener_new();
    struct json_object *object;

    assert(tokener != NULL);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    object = json_tokener_parse_ex(tokener, line, (int)line_bytes);
    /* All of it, or nothing: a second object on the line is not silently ignored. */
    if (json_tokener_get_parse_end(tokener) != line_bytes) {
        json_object_put(object);
        object = NULL;
    }
    json_tokener_free(tokener);
    return object;
}

char *msh_command_run(MshBroker *broker, const char *line, size_t line_bytes,
                      size_t *ret_answer_bytes)
{
    struct json_object *arguments = parse_line(line, line_bytes);
    struct json_object *answer = json_object_new_object();
    MshError error = {{0}};
    const char *text;
    char *copy;
    size_t text_bytes;
    int result;

    assert(answer != NULL);
    json_object_object_add(answer, "ok", json_object_new_boolean(1));
    result = run_object(broker, arguments, answer, &error);
    if (result < 0) {
        json_object_object_add(answer, "ok", json_object_new_boolean(0));
        add_text(answer, "error", error.text);
        msh_log_info("command_refused reason=\"%s\"", error.text);
    }
    text = json_object_to_json_string_length(answer, JSON_C_TO_STRING_PLAIN, &text_bytes);
    assert(text != NULL);
    copy = malloc(text_bytes + 1);
    assert(copy != NULL);
    memcpy(copy, text, text_bytes);
    copy[text_bytes] = '\n';
    json_object_put(answer);
    json_object_put(arguments);
    *ret_answer_bytes = text_bytes + 1;
    return copy;
}
