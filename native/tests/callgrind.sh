#!/bin/sh
# Counts the instructions of one all-reduce of four cores (callgrind.c) and prints them, for each
# byte of the tensor and all four cores together, beside those in callgrind.txt. Fails if one is
# more than 15 % worse. RECORD=1 writes callgrind.txt anew. (valgrind counts a large memcpy as one
# instruction a byte, so a copy more shows as 4: that is as it should be.)
set -eu
recorded=native/tests/callgrind.txt
out=build/callgrind
if ! command -v valgrind > /dev/null 2>&1; then
    echo "callgrind: valgrind is missing: installing it"
    sudo=$(command -v sudo || true)
    test "$(id -u)" = 0 && sudo=
    $sudo apt-get install -qy valgrind > /dev/null || {
        echo "callgrind: no valgrind. Try: sudo apt-get install -y valgrind" >&2
        exit 1
    }
fi
mkdir -p "$out"
flags=$(sed -n '/^FLAGS = (/,/^)/s/^ *"\(.*\)",.*/\1/p' pccl_py/dataplane/build.py)
shell=$(sed -n 's/^SHELL = "\(.*\)"/\1/p' pccl_py/dataplane/build.py)
sources=
for file in native/src/*.c; do
    case " $shell " in *" $(basename "$file" .c) "*) ;; *) sources="$sources $file" ;; esac
done
# shellcheck disable=SC2086 # words are meant to split
gcc $flags -g -Inative/include -Inative/src native/tests/callgrind.c $sources -o "$out/callgrind"

count() { # BYTES CHECKSUM -> instructions
    valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect=play \
        "$out/callgrind" "$1" "$2" > "$out/log" 2>&1 || {
        cat "$out/log" >&2
        return 1
    }
    sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$out/log"
}

worse=0
: > "$out/new.txt"
printf '%10s %9s %12s %12s\n' bytes checksum recorded now
for bytes in 65536 16777216; do
    for checksum in 0 1; do
        instructions=$(count "$bytes" "$checksum")
        now=$(echo "$instructions" | awk -v n="$bytes" '{ printf "%.3f", $1 / n }')
        was=$(awk -v b="$bytes" -v c="$checksum" '$1 == b && $2 == c { print $3 }' \
            "$recorded" 2> /dev/null || true)
        printf '%10s %9s %12s %12s\n' "$bytes" "$checksum" "${was:--}" "$now"
        echo "$bytes $checksum $now" >> "$out/new.txt"
        awk -v now="$now" -v was="${was:-0}" 'BEGIN { exit !(was > 0 && now > was * 1.15) }' \
            && worse=1
    done
done
if [ "${RECORD:-}" ]; then
    {
        echo "# RECORD=1 make callgrind, $(date +%Y-%m-%d), gcc $(gcc -dumpfullversion)," \
            "$(valgrind --version), $(uname -m)$(grep -qw avx2 /proc/cpuinfo && echo ' with AVX2')"
        echo "# an all-reduce of float32, four cores: bytes, checksum or not, instructions a byte"
        cat "$out/new.txt"
    } > "$recorded"
    exit 0
fi
if [ "$worse" = 1 ]; then
    echo "callgrind: more than 15 % worse than recorded" >&2
    exit 1
fi
