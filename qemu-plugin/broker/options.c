/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * See options.h. Everything is checked here, before anything is opened.
 */
#include "options.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "listener.h"
#include "memshare/protocol.h"

static const char help_text[] =
    "usage: memshared [OPTION]...\n"
    "\n"
    "The broker of memshare: keeps, for each group of guests, one copy of pages that several of "
    "them\n"
    "hold, and hands it out read-only. It never touches a guest. Guests of one group may find out\n"
    "which pages they have in common; guests of different groups share nothing.\n"
    "\n"
    "Sockets:\n"
    "  --runtime-dir DIR      where sockets are made (default /run/memshare)\n"
    "  --group NAME           serve this group on DIR/NAME.sock; repeat for more; groups can also "
    "be\n"
    "                         added later, on the control socket\n"
    "  --control PATH         control socket (default DIR/control.sock, mode 0600); one JSON "
    "object a\n"
    "                         line: {\"command\":\"status\"}; one that systemd passes is used "
    "instead\n"
    "\n"
    "Who may connect to a group:\n"
    "  (default)              guests announced on the control socket, known by their cgroup:\n"
    "                         "
    "{\"command\":\"allow\",\"uuid\":U,\"group\":G,\"cgroup\":\"/machine.slice/...\"}\n"
    "  --allow-by-mode        whoever can open the socket: for hosts with one tenant\n"
    "  --socket-mode MODE     of group sockets, octal (default 0660)\n"
    "  --socket-group GROUP   group name or number that owns them, for instance libvirt-qemu\n"
    "\n"
    "Limits and log:\n"
    "  --store-limit BYTES    most memory that each group's store may use; K, M, G multiply by "
    "1024\n"
    "                         (default: no limit); full, guests keep their own copies\n"
    "  --log-level LEVEL      error, info (default) or debug; to standard error\n"
    "  --no-sandbox           keep capabilities and system calls: for debugging only\n"
    "\n"
    "  --help, --version\n"
    "\n"
    "For example, one group for all QEMU processes of the user's group kvm:\n"
    "  memshared --group default --allow-by-mode --socket-group kvm\n";

enum {
    OPTION_RUNTIME_DIR = 256,
    OPTION_GROUP,
    OPTION_CONTROL,
    OPTION_ALLOW_BY_MODE,
    OPTION_SOCKET_MODE,
    OPTION_SOCKET_GROUP,
    OPTION_STORE_LIMIT,
    OPTION_LOG_LEVEL,
    OPTION_NO_SANDBOX,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option long_options[] = {
    {"runtime-dir", required_argument, NULL, OPTION_RUNTIME_DIR},
    {"group", required_argument, NULL, OPTION_GROUP},
    {"control", required_argument, NULL, OPTION_CONTROL},
    {"allow-by-mode", no_argument, NULL, OPTION_ALLOW_BY_MODE},
    {"socket-mode", required_argument, NULL, OPTION_SOCKET_MODE},
    {"socket-group", required_argument, NULL, OPTION_SOCKET_GROUP},
    {"store-limit", required_argument, NULL, OPTION_STORE_LIMIT},
    {"log-level", required_argument, NULL, OPTION_LOG_LEVEL},
    {"no-sandbox", no_argument, NULL, OPTION_NO_SANDBOX},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

static int parse_mode(const char *text, mode_t *ret_mode, MshError *error)
{
    char *end;
    unsigned long mode;

    errno = 0;
    mode = strtoul(text, &end, 8);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || mode > 0777)
        return msh_error_set(error, -EINVAL, "--socket-mode %s: not an octal mode such as 0660",
                             text);
    *ret_mode = (mode_t)mode;
    return 0;
}

static int parse_group(const char *text, gid_t *ret_group, MshError *error)
{
    const struct group *entry;
    char *end;
    unsigned long number;

    errno = 0;
    number = strtoul(text, &end, 10);
    if (isdigit((unsigned char)text[0]) && *end == '\0' && errno == 0 && number < UINT32_MAX) {
        *ret_group = (gid_t)number;
        return 0;
    }
    entry = getgrnam(text);
    if (entry == NULL)
        return msh_error_set(error, -EINVAL, "--socket-group %s: no such group", text);
    *ret_group = entry->gr_gid;
    return 0;
}

static int parse_bytes(const char *text, uint64_t *ret_bytes, MshError *error)
{
    char *end;
    unsigned long long number;
    unsigned shift = 0;

    errno = 0;
    number = strtoull(text, &end, 10);
    if (*end != '\0' && end != text) {
        static const char suffixes[] = "KMG";
        const char *suffix = strchr(suffixes, toupper((unsigned char)*end));

        if (suffix != NULL) {
            shift = 10 * (unsigned)(suffix - suffixes + 1);
            end++;
        }
    }
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || number == 0 ||
        number > (UINT64_MAX >> shift))
        return msh_error_set(error, -EINVAL, "--store-limit %s: not a number of bytes such as 8G",
                             text);
    *ret_bytes = (uint64_t)number << shift;
    return 0;
}

static int add_group(MshOptions *options, char *name, MshError *error)
{
    int result = msh_group_name_check(name, error);

    if (result < 0)
        return result;
    for (unsigned i = 0; i < options->group_count; i++) {
        if (strcmp(options->groups[i], name) == 0)
            return msh_error_set(error, -EINVAL, "--group %s: given twice", name);
    }
    options->groups =
        reallocarray(options->groups, options->group_count + 1, sizeof(*options->groups));
    assert(options->groups != NULL);
    options->groups[options->group_count++] = name;
    return 0;
}

static int parse_option(MshOptions *options, int option, char *value, const char *given,
                        MshError *error)
{
    switch (option) {
    case OPTION_RUNTIME_DIR:
        options->runtime_dir = value;
        return 0;
    case OPTION_GROUP:
        return add_group(options, value, error);
    case OPTION_CONTROL:
        options->control_path = value;
        return 0;
    case OPTION_ALLOW_BY_MODE:
        options->allow_by_mode = true;
        return 0;
    case OPTION_SOCKET_MODE:
        return parse_mode(value, &options->socket_mode, error);
    case OPTION_SOCKET_GROUP:
        return parse_group(value, &options->socket_group, error);
    case OPTION_STORE_LIMIT:
        return parse_bytes(value, &options->store_limit_bytes, error);
    case OPTION_LOG_LEVEL:
        if (msh_log_level_parse(value, &options->log_level) == 0)
            return 0;
        return msh_error_set(error, -EINVAL, "--log-level %s: not error, info or debug", value);
    case OPTION_NO_SANDBOX:
        options->no_sandbox = true;
        return 0;
    case OPTION_HELP:
        fputs(help_text, stdout);
        return MSH_E_OPTIONS_DONE;
    case OPTION_VERSION:
        printf("memshared %s (protocol %u to %u)\n", MSH_VERSION, MSH_PROTOCOL_OLDEST,
               MSH_PROTOCOL_NEWEST);
        return MSH_E_OPTIONS_DONE;
    case ':':
        return msh_error_set(error, -EINVAL, "%s needs a value; see memshared --help", given);
    default:
        return msh_error_set(error, -EINVAL, "%s is not an option; see memshared --help", given);
    }
}

int msh_options_parse(MshOptions *ret_options, int argc, char **argv, MshError *error)
{
    MshOptions options = {
        .runtime_dir = "/run/memshare",
        .socket_mode = 0660,
        .socket_group = MSH_NO_GROUP,
        .log_level = MSH_LOG_INFO,
    };
    int option, result = 0;

    opterr = 0;
    while (result == 0 && (option = getopt_long(argc, argv, ":", long_options, NULL)) != -1)
        result = parse_option(&options, option, optarg, argv[optind - 1], error);
    if (result == 0 && optind < argc)
        result = msh_error_set(error, -EINVAL, "%s: no argument is expected; see memshared --help",
                               argv[optind]);
    if (result != 0) {
        msh_options_fini(&options);
        return result;
    }
    *ret_options = options;
    return 0;
}

void msh_options_fini(MshOptions *options)
{
    free(options->groups);
    options->groups = NULL;
}
