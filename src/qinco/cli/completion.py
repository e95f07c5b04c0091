"""Completion in the shell: `eval "$(qinco completion bash)"`. The scripts ask `qinco completion words WORD ...`."""

from collections.abc import Sequence

from qinco.cli.keys import ALIASES, KEYS, Key
from qinco.cli.overrides import OPTIONS, find_task, split_task
from qinco.cli.resolved import keys_of
from qinco.cli.tasks import TASKS
from qinco.datasets.catalogue import DATASETS
from qinco.errors import ConfigError

FILES = "<file>"  # the candidate that stands for what the shell knows better: names of files

# Bash cuts words at `=` and `:` as well, hands over the pieces, and puts a reply in the place of the last one alone.
# `$2` is that piece without its quotes. Where nothing but files may stand there, bash's own completion knows best.
_BASH = r"""
_qinco() {
    local i word key= value before rest=${COMP_LINE:0:COMP_POINT} words=() found=() files=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        ((i == COMP_CWORD)) && word=${rest#"${rest%%[![:blank:]]*}"}
        if ((i > 0)) && [[ $rest != [[:blank:]]* ]]; then words[-1]+=$word; else words+=("$word"); fi
        rest=${rest#*"$word"}
    done
    word=${words[-1]} before=${word%"$2"}
    [[ $before == *[=:] ]] || before=
    mapfile -t found < <("$1" completion words "${words[@]:1}" 2>/dev/null)
    if [[ ${found[0]-} == '<file>' ]]; then
        [[ $word == *=* ]] && key=${word%%=*}=
        value=${word#"$key"}
        ((${#found[@]} == 1)) && [[ ${value#[\'\"]} == "$2" ]] && return
        mapfile -t files < <(compgen -f -- "$value")
        compopt -o filenames 2>/dev/null
        found=("${found[@]:1}" "${files[@]/#/"$key"}")
    else
        compopt +o default 2>/dev/null
    fi
    COMPREPLY=("${found[@]#"$before"}")
    [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _qinco qinco
"""
_ZSH = r"""
_qinco() {
    local -a found
    found=("${(@f)$("$words[1]" completion words "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
    compadd -S '' -- ${(M)found:#*=}
    compadd -- ${${found:#*=}:#<file>}
    if (( ${found[(I)<file>]} )); then
        compset -P '*='
        _files
    fi
}
compdef _qinco qinco
"""
_FISH = r"""
function __qinco_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program $words[1]
    set -e words[1]
    $program completion words $words "$current" 2>/dev/null
end
complete -c qinco -f -a '(__qinco_words | string match -v "<file>")'
complete -c qinco -n '__qinco_words | string match -q "<file>"' -F
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script_for(shell: str) -> str:
    """What `shell` must run once to complete the command line of qinco."""
    return _SCRIPTS[shell].strip()


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of `words` may become, `FILES` first where a file's name may stand; after a mistake nothing."""
    *before, current = words or [""]
    try:
        task_name, rest = split_task(before)
        if current.startswith("-"):
            found = list(OPTIONS)
        elif task_name is None or task_name == "help":
            found = list(TASKS)
            if task_name is None:
                found = [f"task={name}" for name in found] if current.startswith("task=") else [*found, "help"]
        elif "=" in current:
            found = _assignments(find_task(task_name).name, current.partition("=")[0])
        else:
            found = _words(find_task(task_name).name, rest, current)
    except ConfigError:
        return []
    return [word for word in found if word == FILES or word.startswith(current)]


def _words(task_name: str, before: Sequence[str], current: str) -> list[str]:
    """The keys that are not given yet, and what may stand without a key."""
    task = TASKS[task_name]
    given = {ALIASES.get(name, name) for name in (word.partition("=")[0] for word in before)}
    keys = [f"{key.name}=" for key in keys_of(task) if key.name not in given and key.name != task.positional]
    if task.positional is None:
        return keys
    values = _values(KEYS[task.positional])
    # Any file may come next: keys are offered where it looks like one of them.
    if FILES in values:
        return [key for key in keys if current and key.startswith(current)] or values
    return [*(value for value in values if value not in before), *keys]


def _assignments(task_name: str, name: str) -> list[str]:
    key = KEYS.get(ALIASES.get(name, name))
    if key is None or not key.is_accepted_by(task_name):
        return []
    return [value if value == FILES else f"{name}={value}" for value in _values(key)]


def _values(key: Key) -> list[str]:
    if key.name == "db":
        return [FILES, *DATASETS]
    if key.name == "name":
        from qinco.datasets.catalogue import names

        return names()
    if key.kind in ("path", "paths"):
        return [FILES]
    known = {
        "switch": ("true", "false"),
        "device": ("auto", "cpu", "cuda"),
        "choice": key.choices,
        "preset": key.choices,
    }
    return [*known.get(key.kind, ()), *(["null"] if key.accepts_null else [])]
