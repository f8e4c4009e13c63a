#!/bin/sh
# Runs every target under libFuzzer, from the committed corpus on. What it learns stays in
# build/libfuzzer and is built upon the next time; a finding is left there too.
# Usage: run.sh SECONDS_EACH [TARGET...]
set -eu
seconds=$1
shift
if ! command -v clang > /dev/null 2>&1; then
    echo "fuzz: clang is missing: installing it"
    sudo=$(command -v sudo || true)
    test "$(id -u)" = 0 && sudo=
    $sudo apt-get install -qy clang > /dev/null || {
        echo "fuzz: no clang. Try: sudo apt-get update && sudo apt-get install -y clang" >&2
        exit 1
    }
fi
out=$(pwd)/build/libfuzzer
echo "fuzz: building with clang into $out"
make -s -C native/fuzz CC=clang OUT="$out" clang
failed=0
for target in ${*:-frame demux core handshake}; do
    mkdir -p "$out/learnt/$target"
    echo "fuzz: $target, $seconds s"
    "$out/libfuzzer-$target" -max_total_time="$seconds" -max_len=32768 -timeout=20 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="$out/$target-" \
        "$out/learnt/$target" "native/fuzz/corpus/$target" > "$out/$target.log" 2>&1 || {
        tail -n 60 "$out/$target.log"
        failed=1
    }
    grep -E 'number_of_executed|average_exec|new_units' "$out/$target.log" || true
done
exit "$failed"
