#!/bin/sh
# Builds the extension and the core with a sanitizer into a folder of their own, and runs the tests
# of the data plane against them. Usage: sanitize.sh address,undefined|thread OUTDIR
set -eu
kind=$1
out=$2
flags="-fsanitize=$kind -fno-omit-frame-pointer -g -O1"
case $kind in
thread) runtime=$(gcc -print-file-name=libtsan.so) ;;
*) runtime="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" ;;
esac

echo "sanitize: building with -fsanitize=$kind into $out"
rm -rf "$out"
mkdir -p "$out"
CFLAGS=$flags LDFLAGS="-fsanitize=$kind" .venv/bin/python setup.py -q \
    build --build-base "$out/temp" --build-lib "$out/lib" > "$out/build.log" 2>&1 \
    || { cat "$out/build.log"; exit 1; }
CFLAGS=$flags LDFLAGS="-fsanitize=$kind" .venv/bin/python -m pccl_py.dataplane.build \
    --core "$out/core" > /dev/null

echo "sanitize: tests/dataplane tests/sim"
# Python itself leaks by design and is not instrumented; torch is left out by these tests.
# A finding ends the process: --capture=sys leaves its report on the terminal.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:report_signal_unsafe=0
PYTHONPATH="$out/lib" LD_PRELOAD=$runtime exec .venv/bin/python -P -m pytest -q --capture=sys \
    -o pythonpath="$out/lib ." --core-dir "$out/core" --timeout 600 tests/dataplane tests/sim
