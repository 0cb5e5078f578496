#!/usr/bin/env bash
# What can be shown of the Android app without an Android SDK: see docs/apps.md for what that leaves open.
# Exit codes: 0 all passed, 1 a check failed, 4 a tool is missing (said, and nothing was checked).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
demo=$(dirname "$here")
tools=$here/build/tools
out=$here/build/out
"$here/setup.sh" "$tools"
rm -rf "$out" && mkdir -p "$out/gen"

lib=$tools/kotlin/lib
android=$tools/debian/usr/lib/android-sdk/platforms/android-23/android.jar:$tools/api26/java.base
bouncycastle=$tools/debian/usr/share/java/bcprov.jar
executorch=$tools/executorch/android/libs/classes.jar
framework=$tools/debian/usr/share/android-framework-res/framework-res.apk
aapt=$tools/debian/usr/lib/android-sdk/build-tools/debian/aapt
junit=$tools/debian/usr/share/java/junit4.jar:$tools/debian/usr/share/java/hamcrest-all.jar
native=$(find "$tools/debian/usr/lib" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
kotlinc=(java -Xmx1500m -XX:TieredStopAtLevel=1 -cp "$lib/*" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -no-reflect -Werror -jvm-target 1.8)
mapfile -t core < <(find "$demo/core/src/main" -name '*.kt' | sort)
mapfile -t tests < <(find "$demo/core/src/test" -name '*.kt' | sort)
mapfile -t app < <(find "$demo/app/src/main" -name '*.kt' | sort)

step() { echo "== $1"; }

step "the core compiles, warnings as errors, against the class library of Android 6 (API 23) and Base64"
"${kotlinc[@]}" -no-jdk -cp "$android:$bouncycastle" -d "$out/core" "${core[@]}"
cp -r "$demo/core/src/main/resources/." "$out/core/"

step "its tests pass on $(java -version 2>&1 | head -1)"
"${kotlinc[@]}" -cp "$out/core:$junit" -Xfriend-paths="$out/core" -d "$out/test" "${tests[@]}"
classes=$(cd "$out/test" && find . -name '*Test.class' | sed 's|^\./||; s|/|.|g; s|\.class$||' | sort)
# As much memory as a phone gives an app.
# shellcheck disable=SC2086 # one word a class
java -Xmx256m -cp "$out/core:$out/test:$junit:$bouncycastle:$lib/kotlin-stdlib.jar" -Dapp.fixtures="$demo/../app_fixtures" \
  org.junit.runner.JUnitCore $classes

step "the desktop twin compiles"
mapfile -t twin < <(find "$demo/twin/src/main" -name '*.kt' | sort)
"${kotlinc[@]}" -cp "$out/core" -d "$out/twin" "${twin[@]}"

step "resources and manifest package"
# Gradle puts the namespace into the manifest; aapt wants it there.
sed 's|<manifest |<manifest package="org.llamaedge.demo" |' "$demo/app/src/main/AndroidManifest.xml" >"$out/AndroidManifest.xml"
package() { # manifest resources output
  LD_LIBRARY_PATH=$native "$aapt" package -f -M "$1" -S "$2" -I "$framework" -F "$3" -J "$out/gen" --min-sdk-version 26 \
    --target-sdk-version 29
}
package "$out/AndroidManifest.xml" "$demo/app/src/main/res" "$out/app-resources.apk"
LD_LIBRARY_PATH=$native "$aapt" dump permissions "$out/app-resources.apk" | tee "$out/permissions.txt"
if grep -q "uses-permission" "$out/permissions.txt"; then
  echo "the packaged manifest asks for a permission" >&2
  exit 1
fi

step "a misspelt resource is refused"
cp -r "$demo/app/src/main/res" "$out/wrong-res"
sed -i 's|@string/send"|@string/sned"|' "$out/wrong-res/layout/activity_chat.xml"
if package "$out/AndroidManifest.xml" "$out/wrong-res" "$out/wrong.apk" 2>"$out/wrong-res.txt"; then
  echo "aapt took a resource that does not exist" >&2
  exit 1
fi
grep -m1 "sned" "$out/wrong-res.txt"
package "$out/AndroidManifest.xml" "$demo/app/src/main/res" "$out/app-resources.apk"

step "the app type-checks against ExecuTorch's classes and android.jar"
typecheck() { "${kotlinc[@]}" -no-jdk -cp "$android:$executorch:$out/core" -d "$1" "${@:2}" "$out/gen"; }
typecheck "$out/app" "${app[@]}"

step "a wrong call is rejected"
mkdir "$out/wrong"
for file in "${app[@]}"; do cp "$file" "$out/wrong/"; done
sed -i 's|module.loadMethod("forward")|module.loadMethod(7)|' "$out/wrong/ExecuTorchModel.kt"
if typecheck "$out/wrong-app" "$out"/wrong/*.kt 2>"$out/wrong.txt"; then
  echo "the compiler took a wrong call of ExecuTorch" >&2
  exit 1
fi
grep -m1 "ExecuTorchModel.kt.*mismatch" "$out/wrong.txt" | sed 's|.*/||'
echo "android-check: all passed"
