# Sourced by the scripts beside it: makes the repository's own virtual environment, .venv, and keeps it up to date.
#
#   prepare base|dev|docs    makes or refreshes .venv; sets PYTHON to its interpreter. `dev` has the test tools, and installs
#                            bubblewrap if it may; `docs` has what builds the site, too
#   stage TEXT          says what comes next, after the seconds since the script began
#
# .venv/lockstitch.stamp holds a checksum of what was installed; nothing is reinstalled while it still holds.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
PYTHON="$ROOT/.venv/bin/python"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONHOME PYTHONPATH
unset PYTHONDONTWRITEBYTECODE  # pytest keeps its rewritten tests as bytecode: seconds of every run, for each process
if [[ -n "${CI:-}" ]]; then export TQDM_DISABLE=1; fi

stage() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The first Python >= 3.11 that can make virtual environments, else the first one at all; empty if there is none.
find_python() {
    local name found=""
    for name in python3.13 python3.12 python3.11 python3; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
        found="${found:-$(command -v "$name")}"
    done
    printf '%s\n' "$found"
}

make_venv() {
    local python package
    python="$(find_python)"
    [[ -n "$python" ]] || fail "no Python >= 3.11 found (tried python3.13, python3.12, python3.11, python3); install one"
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        if [[ "$(id -u)" != 0 ]] || ! command -v apt-get >/dev/null; then
            fail "$python cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install $package)"
        fi
        stage "installing $package, which $python needs to make virtual environments"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
    fi
    stage "making .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear "$ROOT/.venv"
}

prepare() {
    local kind="$1" stamp="$ROOT/.venv/lockstitch.stamp" sum target="."
    case "$kind" in
        base) ;;
        dev) target=".[dev]" ;;
        docs) target=".[dev,docs]" ;;
        *) fail "prepare: unknown kind '$kind' (base, dev, docs)" ;;
    esac
    if [[ "$kind" != base ]]; then install_bubblewrap; fi
    # The folder counts too: the scripts and the editable install inside .venv name it.
    sum="$({ printf '%s\n' "$ROOT" && cat "$ROOT/constraints.txt" "$ROOT/pyproject.toml"; } | cksum)"
    if [[ -f "$stamp" ]] && "$PYTHON" -c '' 2>/dev/null; then
        case "$(cat "$stamp")" in
            "$sum $kind" | "$sum docs")
                stage "reusing .venv"
                return
                ;;
            "$sum dev")
                if [[ "$kind" == base ]]; then
                    stage "reusing .venv"
                    return
                fi
                ;;
        esac
    fi
    # A stamp of another folder, or none: moved, broken or half made.
    if ! [[ -f "$ROOT/.venv/lockstitch.root" && "$(cat "$ROOT/.venv/lockstitch.root")" == "$ROOT" ]] \
        || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        make_venv
        printf '%s\n' "$ROOT" >"$ROOT/.venv/lockstitch.root"
    fi
    rm -f "$stamp"
    stage "installing lockstitch and its dependencies into .venv (minutes the first time)"
    (cd "$ROOT" && "$PYTHON" -m pip install -qq -c constraints.txt -e "$target")
    printf '%s %s\n' "$sum" "$kind" >"$stamp"
    stage ".venv is ready"
}

# Bubblewrap is what code rewards run programs in. Nothing else needs it, so its absence fails nobody but those tests.
install_bubblewrap() {
    if command -v bwrap >/dev/null; then return; fi
    if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
        stage "installing bubblewrap, the sandbox of code rewards"
        export DEBIAN_FRONTEND=noninteractive
        if (apt-get install -y -qq bubblewrap || { apt-get update -qq && apt-get install -y -qq bubblewrap; }) &>/dev/null; then
            return
        fi
    fi
    stage "no bubblewrap: tests of code rewards will be skipped (Debian, Ubuntu: apt-get install bubblewrap)"
}
