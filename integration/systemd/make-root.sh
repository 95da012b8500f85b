#!/usr/bin/env bash
# make-root.sh DIRECTORY: a small Debian 12 with systemd, in which the service test boots agentd.
# DIRECTORY.done tells that it is complete. Needs mmdebstrap and a Debian mirror.
set -euo pipefail
directory=${1:?directory}
rm -rf "$directory" "$directory.done"
mkdir -p "$directory"
mmdebstrap --quiet --variant=minbase \
    --include=systemd-sysv,dbus,iproute2,iputils-ping,procps \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm - | tar --extract --preserve-permissions --directory "$directory"

# The job of a boot: run /job/run, keep its output and status, power off.
cat >"$directory/etc/systemd/system/job.service" <<'UNIT'
[Unit]
Description=the test's script
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory=/job
ExecStart=/bin/bash -c '/job/run >/job/out 2>&1; echo $$? >/job/status; sync; systemctl poweroff --force --force'
[Install]
WantedBy=default.target
UNIT
system=$directory/etc/systemd/system
mkdir -p "$system/default.target.wants"
ln -sf ../job.service "$system/default.target.wants/job.service"
ln -sf /lib/systemd/system/multi-user.target "$system/default.target"
for unit in systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service \
    getty@tty1.service console-getty.service; do
    ln -sf /dev/null "$system/$unit"
done
touch "$directory.done"
