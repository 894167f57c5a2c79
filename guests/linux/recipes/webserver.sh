#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Run on the root file system ($1): what nginx serves to the load `web`.
set -eu
root=$1
mkdir "$root/var/www/html/files"
"$root/usr/lib/memshare/load" files "$root/var/www/html/files"
# No log of each request: it would fill the guest's page cache and its disk with what no two guests have in common.
cat >"$root/etc/nginx/sites-available/default" <<'EOF_SITE'
server {
    listen 80;
    root /var/www/html;
    access_log off;
    keepalive_requests 1000000000;
}
EOF_SITE
