#!/bin/sh
# Prints how to run a Swift compiler: nothing for one on PATH, else the folder of a Debian system that has one.
# Exit codes: 0 found or made, 4 there is none and none can be made here (standard error says why), 1 the set-up failed.
#
# SWIFT_ROOT       an unpacked system with /usr/bin/swift (default: ~/.cache/llama-edge/swift-trixie)
# SWIFT_SETUP      "no": never make one
# SWIFT_SETUP_S    seconds that making it may take (default 1200; 3.5 minutes with a near mirror)
# DEBIAN_MIRROR    where packages come from
set -eu

SUITE=trixie # the first Debian with swiftlang (6.0.3)
NEEDED_MB=5000
root=${SWIFT_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/llama-edge/swift-$SUITE}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
limit_s=${SWIFT_SETUP_S:-1200}

skip() {
	echo "no Swift compiler: $1" >&2
	exit 4
}

if command -v swift >/dev/null 2>&1; then
	exit 0
fi
# A link to an absolute path, which leads nowhere from out here.
if [ -L "$root/usr/bin/swift" ] || [ -x "$root/usr/bin/swift" ]; then
	[ "$(id -u)" = 0 ] || skip "$root has one, and only root can enter it"
	unshare --mount true 2>/dev/null || skip "$root has one, and this system lets nobody mount /proc in it"
	echo "$root"
	exit 0
fi
[ ! -e "$root" ] || skip "$root is there and has no usr/bin/swift; remove it, or set SWIFT_ROOT to another place"
[ "${SWIFT_SETUP:-yes}" != no ] || skip "swift is not on PATH, and SWIFT_SETUP=no"
[ "$(id -u)" = 0 ] || skip "swift is not on PATH; as root, Debian's swiftlang would be unpacked into $root"
command -v debootstrap >/dev/null 2>&1 || skip "swift is not on PATH, nor is debootstrap (apt-get install debootstrap)"
unshare --mount true 2>/dev/null || skip "swift is not on PATH, and this system lets nobody mount /proc in a chroot"

mkdir -p "$(dirname "$root")"
free_mb=$(df -Pm "$(dirname "$root")" | awk 'NR == 2 { print $4 }')
[ "$free_mb" -ge "$NEEDED_MB" ] || skip "$free_mb MB are free at $(dirname "$root"), $NEEDED_MB are needed"

part=$root.part.$$
trap 'rm -rf "$part"' EXIT
trap 'exit 1' INT TERM
echo "unpacking Debian $SUITE's swiftlang into $root: 3.3 GB, a few minutes" >&2
timeout "$limit_s" debootstrap --variant=minbase --include=swiftlang,libc6-dev "$SUITE" "$part" "$mirror" \
	>"$root.log" 2>&1 || {
	echo "debootstrap failed or took over $limit_s s; $root.log ends with:" >&2
	tail -n 5 "$root.log" >&2
	exit 1
}
rm -rf "$part"/var/cache/apt/archives/*.deb
mv "$part" "$root"
echo "$root"
