#!/usr/bin/env bash
# Fetches what `check.sh` compiles with, into a folder that git ignores; installs nothing and needs no root.
# Exit code 4: a tool or a package could not be had here; the last line says which.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tools=${1:-$here/build/tools}
kotlin=2.4.20
# Carries ExecuTorch's Android classes, `android/libs/classes.jar`; Maven's AAR can't be fetched by npm or apt.
rne=0.9.3

missing() {
  echo "android-check: $1" >&2
  exit 4
}

for command in java javac jimage npm apt-get dpkg tar unzip; do
  command -v "$command" >/dev/null || missing "$command is not installed"
done
mkdir -p "$tools/packages" && cd "$tools/packages"

npm_package() { # name version folder
  [ -d "$tools/$3" ] && return
  npm pack --silent "$1@$2" >/dev/null || missing "npm has no $1@$2"
  mkdir -p "$tools/$3.part"
  tar xzf "$1-$2.tgz" -C "$tools/$3.part" --strip-components=1
  rm "$1-$2.tgz"
  mv "$tools/$3.part" "$tools/$3"
}

debian() { # options of apt, then packages; each into one common tree
  local options=("${@:1:$1+1}")
  shift $(($1 + 1))
  for package in "$@"; do
    [ -e "$tools/debian/.$package" ] && continue
    apt-get "${options[@]:1}" download "$package" >/dev/null 2>&1 || missing "apt has no $package"
    dpkg -x "$package"_*.deb "$tools/debian"
    rm "$package"_*.deb
    touch "$tools/debian/.$package"
  done
}

npm_package kotlin-compiler "$kotlin" kotlin
npm_package react-native-executorch "$rne" executorch
mkdir -p "$tools/debian"
debian 0 junit4 libhamcrest-java aapt android-framework-res android-liblog android-libbase android-libbacktrace \
  android-libcutils android-libutils android-libziparchive android-libandroidfw android-libaapt libprotobuf-lite32 p7zip-full
# From unstable: android.jar of API 23, the newest that Debian builds, and a Bouncy Castle about as new as the one that Gradle takes.
# The index stays in our own folder.
if [ ! -e "$tools/debian/.libandroid-23-java" ] || [ ! -e "$tools/debian/.libbcprov-java" ]; then
  mkdir -p "$tools/sid/lists/partial" "$tools/sid/cache/archives/partial"
  echo "deb http://deb.debian.org/debian sid main" >"$tools/sid/sources.list"
  sid=(-o "Dir::Etc::sourcelist=$tools/sid/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$tools/sid/lists"
    -o "Dir::Cache=$tools/sid/cache" -o APT::Get::List-Cleanup=0)
  apt-get "${sid[@]}" update >/dev/null 2>&1 || missing "the index of Debian unstable cannot be read"
  debian "${#sid[@]}" "${sid[@]}" libandroid-23-java libbcprov-java
fi
# The one class that the core takes of API 26, the app's oldest: Java 8's, which the JDK here has unchanged.
if [ ! -d "$tools/api26" ]; then
  modules=$(dirname "$(dirname "$(readlink -f "$(command -v java)")")")/lib/modules
  jimage extract --dir "$tools/api26" --include 'regex:/java.base/java/util/Base64.*' "$modules" || missing "the JDK has no lib/modules"
fi
