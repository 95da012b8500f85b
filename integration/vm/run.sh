#!/usr/bin/env bash
# run.sh DIRECTORY NAME TEST PROGRAM…: boots the machine that make-root.sh made in DIRECTORY, runs the
# test NAME of the test program TEST in it, with the PROGRAMs beside it, and exits with its status.
# Software emulation only: /dev/kvm, where there is one, may be of a kind that Debian's kernels hang on.
set -euo pipefail
export LC_ALL=C
directory=${1:?directory} name=${2:?name of a test} test=${3:?test program}
shift 3

work=$(mktemp -d)
qemu=
clean() {
    [ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
mkdir -p "$work/root/job"

add() {
    # Symbols are most of a debug build.
    strip -o "$work/root/job/$2" "$1"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        [ -e "$work/root$library" ] || cp -L --parents "$library" "$work/root/"
    done
}
add "$test" test
for program in "$@"; do
    add "$program" "${program##*/}"
done
cat >"$work/root/job/run" <<JOB
#!/bin/sh
cd /job
export AGENTD_BIN_DIR=/job AGENTD_INSIDE_VM=1 TMPDIR=/tmp RUST_BACKTRACE=0
exec ./test --exact "$name" --nocapture --test-threads 1
JOB
chmod +x "$work/root/job/run"
(cd "$work/root" && find . | cpio --create --format newc --quiet) >"$work/job.cpio"
# The kernel unpacks one archive after the other.
cat "$directory/root.cpio" "$work/job.cpio" >"$work/initrd"

timeout --kill-after 5 "${VM_TIMEOUT:-150}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 \
    -nodefaults -no-reboot -display none -kernel "$directory/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off net.ifnames=0" \
    -chardev stdio,id=console,signal=off -serial chardev:console </dev/null >"$work/console" 2>"$work/errors" &
qemu=$!
wait "$qemu" || true
qemu=
tr -d '\r' <"$work/console"
cat "$work/errors" >&2
status=$(tr -d '\r' <"$work/console" | sed -n 's/^VM-EXIT=//p' | tail -1)
[ -n "$status" ] || { echo "the virtual machine ended without a result, or took too long" >&2; exit 125; }
exit "$status"
