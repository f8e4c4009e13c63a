#!/bin/sh
# Says what this machine lacks to build pccl-py, one line each with the Debian command; exits with
# the number of missing things. Usage: preflight.sh PYTHON
python=${1:-python3}
missing=0

lacks() {
    printf 'missing: %s. Try: sudo apt-get install -y %s\n' "$1" "$2" >&2
    missing=$((missing + 1))
}

for tool in git gcc make; do
    command -v "$tool" > /dev/null 2>&1 || lacks "$tool" "$tool"
done
if ! command -v "$python" > /dev/null 2>&1; then
    lacks "$python" python3
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    printf 'missing: Python 3.11 or later, %s is %s. Name another with make PYTHON=...\n' \
        "$python" "$("$python" -V)" >&2
    missing=$((missing + 1))
else
    "$python" -c 'import venv, ensurepip' > /dev/null 2>&1 \
        || lacks "the venv module of $python" python3-venv
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    test -f "$headers/Python.h" || lacks "Python.h of $python" python3-dev
fi
# the C library's headers come with no tool of the list above when recommendations are off
if command -v gcc > /dev/null 2>&1; then
    echo '#include <stdio.h>' | gcc -fsyntax-only -x c - 2> /dev/null || lacks "stdio.h" libc6-dev
fi
exit "$missing"
