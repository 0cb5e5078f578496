#!/bin/sh
# Prints SWIFT_CRYPTO_PATH for a build of BundleCore: the folder of swift-crypto's sources, as the compiler's own system
# names it, or nothing where SwiftPM can fetch them from GitHub, as it does for every user of the package.
# Exit codes: 0 they can be had, 4 they cannot (standard error says why), 1 unpacking failed.
#
# SWIFT_CRYPTO_PATH  a folder of your own, named swift-crypto; relative to ios_demo/BundleCore
# SWIFT_SETUP        "no": download nothing
# SWIFT_SETUP_S      seconds that the download may take (default 1200)
# DEBIAN_MIRROR      where it comes from
set -eu

here=$(cd "$(dirname "$0")" && pwd)
limit_s=${SWIFT_SETUP_S:-1200}
folder=/opt/swift-crypto

if [ -n "${SWIFT_CRYPTO_PATH:-}" ]; then
	echo "$SWIFT_CRYPTO_PATH"
	exit 0
fi
root=$("$here/toolchain.sh")
if [ -z "$root" ]; then
	"$here/in_toolchain.sh" swift package --package-path ios_demo/BundleCore --scratch-path "${IOS_CHECK_BUILD:-build/ios}" \
		resolve >&2 && exit 0
	echo "no swift-crypto: SwiftPM cannot fetch it (above); SWIFT_CRYPTO_PATH may name a checkout" >&2
	exit 4
fi
# The Debian system reaches no GitHub, but Debian's source package of the compiler has swift-crypto in it.
if [ ! -e "$root$folder/Package.swift" ]; then
	[ "${SWIFT_SETUP:-yes}" != no ] || {
		echo "no swift-crypto: $root$folder is not there, and SWIFT_SETUP=no" >&2
		exit 4
	}
	echo "unpacking swift-crypto out of the source of Debian's swiftlang: a download of 220 MB" >&2
	timeout "$limit_s" chroot "$root" /usr/bin/env -i MIRROR="${DEBIAN_MIRROR:-http://deb.debian.org/debian}" PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 sh -euc '
		folder=$1
		work=$(mktemp -d)
		trap "rm -rf $work" EXIT
		cd "$work"
		. /etc/os-release
		echo "deb-src $MIRROR $VERSION_CODENAME main" >sources.list
		lists="-o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root"
		apt-get $lists update
		apt-get $lists source --download-only --tar-only swiftlang
		# apt has compared the hash with the one that Debian signed.
		/usr/lib/apt/apt-helper cat-file swiftlang_*.orig.tar.xz >all.tar
		tar -xf all.tar --wildcards --strip-components=1 "swiftlang-*/swift-crypto"
		mv swift-crypto "$folder"
	' sh "$folder" >"$root.crypto.log" 2>&1 || {
		echo "no swift-crypto: it cannot be downloaded and unpacked; $root.crypto.log ends with:" >&2
		tail -n 5 "$root.crypto.log" >&2
		exit 1
	}
fi
echo "$folder"
