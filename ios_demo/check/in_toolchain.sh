#!/bin/sh
# in_toolchain.sh COMMAND...: runs it in the repository's root, where `swift` is found.
# SWIFT_CRYPTO_PATH, BUNDLE_CORE_STRICT and IOS_CHECK_BUNDLE are handed on.
# Exit codes: the command's own, or what toolchain.sh ends with.
set -eu

export SWIFT_CRYPTO_PATH="${SWIFT_CRYPTO_PATH:-}" BUNDLE_CORE_STRICT="${BUNDLE_CORE_STRICT:-}" IOS_CHECK_BUNDLE="${IOS_CHECK_BUNDLE:-}"
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
root=$("$here/toolchain.sh")

if [ -z "$root" ]; then
	cd "$repository"
	exec "$@"
fi
# The mounts are in a namespace of this command alone: they end with it, however it ends.
exec unshare --mount sh -c '
	root=$1 repository=$2
	shift 2
	mount --make-rprivate /
	mkdir -p "$root/repository"
	mount -t proc proc "$root/proc"
	mount -t tmpfs tmpfs "$root/tmp"
	mount --bind "$repository" "$root/repository"
	exec chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/bin:/bin SWIFT_CRYPTO_PATH="$SWIFT_CRYPTO_PATH" \
		BUNDLE_CORE_STRICT="$BUNDLE_CORE_STRICT" IOS_CHECK_BUNDLE="$IOS_CHECK_BUNDLE" \
		sh -c "cd /repository && exec \"\$@\"" sh "$@"
' sh "$root" "$repository" "$@"
