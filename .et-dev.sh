#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The one script of this project: sets up a bare Debian 12 (as root), builds, tests, measures.
# Each verb does what it needs first, says what it does, and does nothing twice.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-/usr/bin/python3}
venv=.venv

# What a bare Debian 12 lacks: first to build and test, then to build the demo's guest, then to lint.
packages="gcc libc6-dev ninja-build pkg-config git ca-certificates python3 python3-venv python3-dev
 libglib2.0-dev libxxhash-dev libjson-c-dev libcap-ng-dev libseccomp-dev libsystemd-dev libcmocka-dev
 liburing-dev
 binutils qemu-system-x86 qemu-utils
 mmdebstrap busybox-static e2fsprogs cpio zstd
 shellcheck"

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

usage() {
    cat <<'EOF'
usage: ./dev VERB [ARGUMENT...]

  setup            install Debian packages (as root) and the virtual environment
  build            compile the C parts and the Python package into build/
  test [ARG...]    all tests, then all again with the 8-bit page hash; ARGs go to pytest (one run)
  demo [ARG...]    main job: 4 Debian guests share memory; writes out/demo/result.json
  bench NAME [..]  a measurement, for instance: ./dev bench engine --json FILE
  lint             formatters' checks, types, shell, spelling, invariants, licences
  fmt              format C and Python in place
  ci               setup, lint, build, test

build, test, demo, bench and lint set up what is missing by themselves.
EOF
}

# Debian packages: asked for only when one is missing, so that it works without root afterwards.
setup_packages() {
    missing=
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || die "Debian packages are missing:$missing" "run ./dev setup as root"
    say "installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# The environment is made anew when what it should hold has changed.
setup_venv() {
    stamp="$venv/.memshare-$(cat pyproject.toml dev | sha256sum | cut -c1-16)"
    [ ! -e "$stamp" ] || return 0
    say "virtual environment $venv: installing Python packages"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    # One list, kept in pyproject.toml: what the build, the package and the named groups need.
    "$venv/bin/python" - test lint bench >"$venv/requirements.txt" <<'EOF'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
lines = project["build-system"]["requires"] + project["project"]["dependencies"]
for group in sys.argv[1:]:
    lines += project.get("dependency-groups", {}).get(group, [])
print("\n".join([*lines, "meson>=1.2", "pip>=23.1"]))
EOF
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$venv/requirements.txt"
    rm -f "$venv"/.memshare-*
    : >"$stamp"
}

setup() { setup_packages; setup_venv; }

# build_into DIRECTORY VENV [MESON-OPTION...]: an editable installation; importing memshare afterwards
# compiles what has changed.
build_into() {
    build=$1 environment=$2
    shift 2
    configured=$("$venv/bin/python" -c 'import json, sys
print(json.load(open(sys.argv[1]))["meson_version"]["full"])' "$build/meson-info/meson-info.json" 2>/dev/null) ||
        configured=unknown
    if [ -d "$build" ] && [ "$configured" != "$("$venv/bin/meson" --version)" ]; then
        say "$build was made by another meson ($configured): starting afresh"
        rm -rf "$build"
    fi
    stamp="$environment/.built-$(echo "$PWD" "$@" | cat - pyproject.toml meson_options.txt | sha256sum | cut -c1-16)"
    if [ -e "$stamp" ] && [ -e "$build/build.ninja" ]; then
        say "compiling $build"
        ninja -C "$build" --quiet
        return 0
    fi
    say "building $build and installing memshare (editable) into $environment"
    PATH="$PWD/$venv/bin:$PATH" "$venv/bin/pip" --python "$environment/bin/python" install -q \
        --disable-pip-version-check --no-build-isolation --no-deps --editable . "-Cbuild-dir=$build" -Csetup-args=-Dwerror=true \
        -Csetup-args=-Dbuildtype=debugoptimized -Csetup-args=-Db_ndebug=false "$@"
    rm -f "$environment"/.built-*
    : >"$stamp"
}

build() { setup; build_into build "$venv"; }

# The second build has an environment of its own, whose memshare binds that build's library; all other
# packages it takes from the first.
build_weak() {
    build
    weak=$venv/weak
    if [ ! -e "$weak/bin/python" ]; then
        "$python" -m venv --without-pip "$weak"
        "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
            >"$("$weak/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth"
    fi
    build_into build-weak "$weak" -Csetup-args=-Dweak_hash=true
}

# run_tests BUILD VENV [PYTEST-ARGUMENT...]
run_tests() {
    directory=$1 environment=$2
    shift 2
    export MEMSHARE_BUILD="$PWD/$directory"
    say "C tests ($directory)"
    "$venv/bin/meson" test -C "$directory" --no-rebuild --print-errorlogs --quiet
    say "Python tests ($directory)"
    "$environment/bin/python" -m pytest -q "$@"
}

test_all() {
    if [ $# -gt 0 ]; then
        build
        MEMSHARE_BUILD=${MEMSHARE_BUILD:-$PWD/build} "$venv/bin/python" -m pytest "$@"
        return
    fi
    build_weak
    run_tests build "$venv"
    run_tests build-weak "$venv/weak"
    say "all tests passed"
}

lint() {
    setup
    say "ruff, mypy";  "$venv/bin/ruff" check orchestrator tests
    "$venv/bin/ruff" format --check orchestrator tests
    "$venv/bin/mypy" orchestrator/memshare
    say "shellcheck";  git ls-files -z '*.sh' dev .ci/run guests/linux | xargs -0 grep -lE '^#!.*sh' |
        xargs shellcheck
    say "codespell";   git ls-files -z | xargs -0 "$venv/bin/codespell" -q 3 --
    say "invariants and licences"; "$venv/bin/python" tests/lint/conventions.py
}

fmt() {
    setup
    "$venv/bin/ruff" format orchestrator tests
    "$venv/bin/ruff" check --fix --exit-zero orchestrator tests
    command -v clang-format >/dev/null || die "clang-format is missing" "apt-get install clang-format"
    git ls-files -z '*.c' '*.h' | xargs -0 clang-format -i
}


