#!/usr/bin/env bash
# isolated.sh COMMAND…: runs tests as the first process of fresh mount, network and pid namespaces
# and fails when they leave a namespace, link, route, process or file behind.
set -euo pipefail

ip link set lo up
mkdir -p /run/netns
mount -t tmpfs -o mode=0755 tmpfs /run/netns
export TMPDIR=/run/agentd-tests
mkdir -p $TMPDIR
mount -t tmpfs tmpfs $TMPDIR
# FRR keeps crash logs here.
mount -t tmpfs -o mode=1777 tmpfs /var/tmp

list() {
    ip netns list | sed 's/^/namespace: /'
    ip -brief link | awk '{ print "link: " $1 }'
    { ip route show table all; ip -6 route show table all; } | sed 's/^/route: /'
    # Without this shell and the listing itself. Orphans are children of this shell.
    ps -e -o args= | grep -v -e '^ps -e -o args=' -e '^grep -v' -e '^sed s/' -e isolated.sh | sed 's/^/process: /' || true
    find $TMPDIR -mindepth 1 -maxdepth 1 | sed 's/^/file: /'
}

before=$(list)
status=0
"$@" || status=$?
# The reaper of a lab whose owner was killed needs a moment.
for _ in $(seq 50); do
    after=$(list)
    [ "$after" != "$before" ] || exit $status
    sleep 0.1
done
echo "error: the tests left something behind (< before, > after):" >&2
diff <(echo "$before") <(echo "$after") >&2 || true
exit 1
