#!/usr/bin/env bash
# Where the time of a running agent goes, by stage of a route's way:
#
#   integration/profile.sh PID SECONDS    watch it so long, then print the table
#   integration/profile.sh FILE...        print the table of files that perf has written
#
# Needs perf (Debian: linux-perf), root, and an agent built with symbols, as the release profile does.
# Samples are of the clock, on processor only, of all threads. In the kernel the stage follows from the
# calls that lead there; in the agent from the function itself, so what was inlined counts for the
# function that it was inlined into.
set -euo pipefail

if [[ ${1:-} =~ ^[0-9]+$ && ${2:-} =~ ^[0-9]+$ ]]; then
    file=$(mktemp)
    trap 'rm -f "$file"' EXIT
    perf record --quiet --event cpu-clock --freq 4000 -g --output "$file" --pid "$1" -- sleep "$2" >&2
    set -- "$file"
elif [ $# -eq 0 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
fi

for file; do
    perf script --no-inline --fields comm,tid,time,ip,sym --input "$file" 2>/dev/null
    echo
done | awk '
    # Innermost first; what interrupted the work, the sampling clock itself among it, is not the work.
    function frame(name) {
        if (name ~ /^asm_(sysvec_|common_interrupt)/) { all = " "; leaf = ""; return }
        if (leaf == "") leaf = name
        all = all name " "
    }
    function has(pattern) { return all ~ pattern }
    function stage() {
        if (has(" asm_exc_page_fault ") || has(" __x64_sys_(munmap|mmap|mremap|madvise|brk) "))
            return "memory asked for and given back (kernel)"
        if (has(" (do_syscall_64|entry_SYSCALL_64|ret_from_fork)")) {
            if (has(" rtm_(new|del)_nexthop ")) return "nexthop object written, its routes with it (kernel)"
            if (has(" (rtnetlink_rcv_msg|inet6?_rtm_(new|del)route) ")) return "route written or deleted (kernel)"
            if (has(" rtnl_dellink ")) return "interfaces deleted (kernel)"
            if (has(" rtnl_(new|set)link ")) return "interfaces made and set (kernel)"
            if (has(" (inet6?_rtm_(new|del)addr|neigh_(add|delete)) ")) return "addresses and neighbours (kernel)"
            if (has(" netlink_(recvmsg|dump) ")) return "acknowledgements read (kernel)"
            if (has(" netlink_sendmsg ")) return "netlink messages handed over (kernel)"
            if (has(" (__x64_sys_fdatasync|__x64_sys_pwrite64) ")) return "records stored (kernel)"
            if (has(" (unix_|__x64_sys_accept4)")) return "API socket (kernel)"
            if (has(" (__x64_sys_openat|__x64_sys_statx|__do_sys_statfs|__x64_sys_setns|__do_sys_setns) "))
                return "namespaces found (kernel)"
            if (has(" (tcp_|inet_recvmsg|inet6_recvmsg|sock_)")) return "socket read (kernel)"
            return "threads woken and waiting (kernel)"
        }
        if (leaf ~ /bgp::wire|bgp::driver::connection|zettabgp/) return "decode"
        if (leaf ~ /bgp::.*policy/) return "policy"
        if (leaf ~ /bgp::rib/) return "RIB"
        if (leaf ~ /dataplane::linux/) return "netlink encode, acknowledgements matched"
        if (leaf ~ /dataplane::/) return "dataplane plan"
        if (leaf ~ /agentd::/) return "change queue (node)"
        if (leaf ~ /bgp::/) return "speaker"
        if (leaf ~ /malloc|calloc|realloc|free|_int_|unlink_chunk|tcache|^__mem|^mem|sysmalloc/)
            return "allocator, copies"
        return "libraries: runtime, hash tables, sorting"
    }
    function count() { if (seen) { samples[stage()]++; total++ } seen = 0; all = " "; leaf = "" }
    /^[^ \t]/ { count(); seen = 1; all = " "; leaf = ""; next }
    /^$/ { count(); next }
    { sub(/^[ \t]*[0-9a-f]+ /, ""); frame($0) }
    END {
        count()
        if (!total) { print "no samples"; exit 1 }
        order = "sort -t\"|\" -k3 -rn"
        print "| stage | share |\n|---|---|"
        fflush()
        for (name in samples)
            if (samples[name] * 200 >= total) printf "| %s | %.0f %% |\n", name, 100 * samples[name] / total | order
        close(order)
        printf "\n%d samples; stages below 0.5 %% are left out.\n", total
    }'
