#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Compiles the programs that images hold, static, so that any image can run them.
#
#   guests/agents/build.sh FOLDER
set -eu
source=$(cd "$(dirname "$0")" && pwd)
folder=$1
mkdir -p "$folder"

# program NAME [SOURCE...]
program() {
    name=$1
    shift
    (cd "$source" && gcc -static -std=gnu11 -O2 -Wall -Wextra -Wshadow -Wvla -Werror -D_GNU_SOURCE -s \
        -Wl,--build-id=none -o "$folder/$name" "$name.c" run.c "$@")
}

program load counters.c allocate.c cache.c compile.c database.c web.c
program integrity counters.c
program report counters.c
program touch
