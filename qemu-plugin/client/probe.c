/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "probe.h"

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/utsname.h>

bool msh_probe_release_is_sound(const char *release)
{
    int major = 0, minor = 0, patch = 0;
    if (sscanf(release, "%d.%d.%d", &major, &minor, &patch) < 2)
        return false;
    if (major != 6)
        return major > 6;
    return minor >= 18 || (minor == 12 && patch >= 37);
}

static int read_number(const char *path, int fallback)
{
    FILE *file = fopen(path, "re");
    int number = fallback;
    if (file) {
        if (fscanf(file, "%d", &number) != 1)
            number = fallback;
        fclose(file);
    }
    return number;
}

int msh_probe_host(MshError *error)
{
    struct utsname host;
    if (uname(&host) < 0 || !msh_probe_release_is_sound(host.release))
        return msh_error_set(error, -ENOSYS,
                             "Linux %s moves memory unsafely or not at all: 6.12.37 or 6.18 is needed",
                             host.release);
    /* In this mode the kernel charges NORESERVE mappings too, and never returns the charge of one that
     * was cut from a template. */
    if (read_number("/proc/sys/vm/overcommit_memory", 0) == 2)
        return msh_error_set(error, -ENOSYS, "vm.overcommit_memory is 2: store mappings would be "
                                             "charged as private memory");
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        return msh_error_set(error, -ENOSYS, "this process has an address space limit (ulimit -v): a "
                                             "store mapping could fail half way");
    return 0;
}
