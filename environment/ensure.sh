# shellcheck shell=sh
# Sourced by ./run and ./test, which set $root: leaves a complete environment in $root/.venv.
# A complete one costs a single start of the interpreter and needs no network.

# The first interpreter that will do; versions with wheels for every pin before newer ones.
find_python() {
    if [ -n "${PYTHON-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11 python
    fi
    without_venv=''
    for limit in 15 1000; do
        for candidate in "$@"; do
            "$candidate" -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, $limit))" \
                >/dev/null 2>&1 || continue
            if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
                printf '%s\n' "$candidate"
                return 0
            fi
            without_venv=$candidate
        done
    done
    if [ -n "$without_venv" ]; then
        version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "environment: $without_venv lacks the venv or ensurepip module" \
            "(on Debian and Ubuntu: apt install python$version-venv)" >&2
    elif [ -n "${PYTHON-}" ]; then
        echo "environment: PYTHON=$PYTHON is not Python 3.11 or newer" >&2
    else
        echo "environment: no Python 3.11 or newer found (PYTHON=/path/to/python names one)" >&2
    fi
    return 1
}

case ${ASYM_ACCELERATOR-} in
'' | cpu | cuda13) ;;
*)
    echo "environment: ASYM_ACCELERATOR=$ASYM_ACCELERATOR is unknown (cpu, cuda13)" >&2
    exit 2
    ;;
esac

python=$root/.venv/bin/python
# -E -s -S: neither the caller's variables nor site-packages can slow or bend the check.
if ! { [ -x "$python" ] && "$python" -E -s -S "$root/environment/state.py" check; } 2>/dev/null; then
    base=$(find_python) || exit 1
    "$base" -E -s "$root/environment/install.py" || exit $?
fi

# Only the checkout: a path of the caller's could put another jax before the pinned one.
PYTHONPATH=$root
export PYTHONPATH
