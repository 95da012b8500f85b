#!/usr/bin/env bash
# make-root.sh DIRECTORY: makes DIRECTORY/vmlinuz and DIRECTORY/root.cpio, a Debian kernel with a small
# file system (busybox, iproute2, ping, the kernel's network modules), for run.sh beside this.
# Needs root only for apt; fetches the kernel package from Debian.
set -euo pipefail
export LC_ALL=C
directory=${1:?directory}
rm -rf "$directory" "$directory.new"
mkdir -p "$directory.new"
cd "$directory.new"

modules=(
    ipip vxlan veth bridge tun dummy nf_tables nf_conntrack nf_nat nft_chain_nat nft_masq nft_nat nft_ct
    nft_redir nft_fib nft_fib_inet nft_fib_ipv4 nft_fib_ipv6 nft_limit nft_log nft_reject_inet nft_numgen
    nft_hash nft_meta_bridge nf_conntrack_bridge
)

package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)
[ -n "$package" ] || { echo "apt knows no linux-image-cloud-amd64" >&2; exit 1; }
# apt drops its rights to a user that cannot write everywhere.
chmod 755 .
apt-get download --quiet --quiet -o APT::Sandbox::User=root "$package"
dpkg-deb --extract "$package"_*.deb kernel
version=$(ls kernel/lib/modules)
cp "kernel/boot/vmlinuz-$version" vmlinuz
depmod --basedir kernel "$version"

mkdir -p root/{bin,sbin,proc,sys,dev,run,tmp,etc,usr,root,var} root/lib/modules
ln -s ../bin root/usr/bin
ln -s ../sbin root/usr/sbin
cp /bin/busybox root/bin/busybox
for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "root/bin/$applet"
done
ln -s ../bin/busybox root/sbin/modprobe
# busybox has programs of these names as well, which can do less; its shell would run them first.
for program in ip ping dash; do
    path=$(command -v "$program")
    rm -f "root/bin/$program"
    cp -L "$path" "root/bin/$program"
    { ldd "$path" || true; } | grep -o '/[^ ]*' | while read -r library; do
        [ -e "root$library" ] || cp -L --parents "$library" root/
    done
done
ln -sf dash root/bin/sh

# What a module needs comes with it. What is built in, or unknown, has no file.
for module in "${modules[@]}"; do
    modprobe --dirname "$PWD/kernel" --set-version "$version" --show-depends "$module" 2>/dev/null || true
done | sed -n "s#^insmod $PWD/kernel/\([^ ]*\).*#\1#p" | sort -u >modules.txt
(cd kernel && xargs cp --parents -t ../root <../modules.txt)
cp "kernel/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "root/lib/modules/$version/"
depmod --basedir root "$version"

cat >root/init <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /run/netns /etc/iproute2/rt_protos.d
ln -s /proc/self/fd /dev/fd
mount -t devpts devpts /dev/pts
echo /sbin/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
status=127
[ -x /job/run ] && { /job/run; status=$?; }
echo "VM-EXIT=$status"
sync
poweroff -f
INIT
chmod +x root/init
(cd root && find . | cpio --create --format newc --quiet) >root.cpio
rm -rf kernel root modules.txt ./*.deb
cd /
mv "$directory.new" "$directory"
