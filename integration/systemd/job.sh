#!/bin/bash
# Runs inside the booted Debian: installs agentd as a package would, and looks at it as a service.
set -euo pipefail
fail() {
    echo "FAILED: $*"
    systemctl status --no-pager --full agentd || true
    journalctl --no-pager --unit agentd | tail -60
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

install -m 755 /job/agentd /job/agentctl /usr/bin/
install -D -m 644 /job/agentd.toml /etc/agentd/agentd.toml
install -D -m 644 /job/agentd.service /etc/systemd/system/agentd.service
install -D -m 644 /job/sysusers.conf /usr/lib/sysusers.d/agentd.conf
install -D -m 644 /job/rt_protos.conf /etc/iproute2/rt_protos.d/agentd.conf
systemd-sysusers
# The unit as it is, with a watchdog that a test can wait for.
mkdir -p /etc/systemd/system/agentd.service.d
printf '[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n' >/etc/systemd/system/agentd.service.d/test.conf

ip link add eth0 type veth peer name other
# No change of the kernel's own (duplicate address detection) a second later.
sysctl -qw net.ipv6.conf.eth0.accept_dad=0 net.ipv6.conf.other.accept_dad=0
ip link set eth0 up
ip link set other up
ip address add 192.168.26.11/24 dev eth0
ip -6 address add fd00:26::11/64 dev eth0 nodad
ip netns add w1

show() { systemctl show --property "$1" --value agentd; }
routes() { ip route show; ip -6 route show | grep -v ' dev other'; }
wait_for() {
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" && return 0
        sleep 0.1
    done
    fail "waited in vain for: $what"
}

systemctl daemon-reload
# Type=notify: the start returns when agentd said READY=1.
systemctl start agentd
[ "$(show ActiveState)" = active ] || fail "not active"
[ -n "$(show StatusText)" ] || fail "no STATUS"
echo "ready: $(show StatusText)"
[ "$(stat -c '%a %U:%G' /run/agentd/agentd.sock)" = '660 root:agentd' ] ||
    fail "socket: $(stat -c '%a %U:%G' /run/agentd/agentd.sock)"
agentctl status

agentctl workload add w1 --netns /run/netns/w1
ip netns exec w1 ping -q -c 2 -i 0.05 192.168.26.11
ip netns exec w1 ping -q -c 2 -i 0.05 fd00:26::11

# Of this parameter only fanotify tells, which the unit has to permit.
link=$(ip -oneline link show | grep -om 1 'agt[0-9a-f]*')
parameter=/proc/sys/net/ipv6/conf/$link/accept_ra
echo 2 >"$parameter"
wait_for "accept_ra as before" grep -qx 0 "$parameter"
before=$(routes)
grep -q 'proto agentd scope link' <<<"$before" || fail "routes: $before"
grep -q 'blackhole 10.244.1.0/26 proto agentd' <<<"$before" || fail "routes: $before"
echo "$before"

first=$(show MainPID)
ip monitor route link address >/tmp/monitor &
monitor=$!
sleep 0.3
systemctl restart agentd
[ "$(show MainPID)" != "$first" ] || fail "the same pid after a restart"
agentctl workload show w1 >/dev/null
[ "$(routes)" = "$before" ] || fail "routes after the restart: $(routes)"
kill $monitor
[ ! -s /tmp/monitor ] || fail "the restart wrote to the kernel: $(cat /tmp/monitor)"
ip netns exec w1 ping -q -c 2 -i 0.05 192.168.26.11

# Watchdog: a process that does not answer is replaced. It lives longer than one period before.
second=$(show MainPID)
sleep 3
[ "$(show MainPID)" = "$second" ] || fail "restarted although it was well"
[ "$(show NRestarts)" = 0 ] || fail "NRestarts=$(show NRestarts)"
kill -STOP "$second"
replaced() { [ "$(show NRestarts)" -ge 1 ] && [ "$(show ActiveState)" = active ]; }
wait_for "the watchdog" replaced
[ "$(routes)" = "$before" ] || fail "routes after the watchdog: $(routes)"

# kill -9 is followed by a new start.
restarts=$(show NRestarts)
kill -KILL "$(show MainPID)"
again() { [ "$(show NRestarts)" -gt "$restarts" ] && [ "$(show ActiveState)" = active ]; }
wait_for "a restart after kill -9" again

# The journal has fields, not only text.
journalctl --output json --unit agentd --no-pager >/tmp/journal
grep -q '"PRIORITY"' /tmp/journal && grep -q '"SYSLOG_IDENTIFIER":"agentd"' /tmp/journal ||
    fail "journal: $(head -3 /tmp/journal)"
grep -qE '"(TARGET|F_[A-Z_]+)"' /tmp/journal || fail "no structured fields: $(tail -3 /tmp/journal)"

systemctl stop agentd
[ "$(show Result)" = success ] || fail "Result=$(show Result)"
[ "$(show ExecMainStatus)" = 0 ] || fail "ExecMainStatus=$(show ExecMainStatus)"
[ "$(routes)" = "$before" ] || fail "routes after the stop: $(routes)"
ip netns exec w1 ping -q -c 2 -i 0.05 192.168.26.11
echo "all of it holds"
