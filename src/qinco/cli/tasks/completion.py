"""`qinco completion`: completion of the command line in the shell, by `eval "$(qinco completion bash)"`.

The scripts ask `qinco completion words WORD ...`, which `qinco.cli.completion` answers.
"""

import sys

from qinco.cli.console import write_line
from qinco.cli.keys import Key, task

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
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@task(
    "completion",
    f"completion of this command line: qinco completion {'|'.join(SCRIPTS)}",
    keys=[Key("shell", "choice", None, "the shell to complete in", choices=tuple(SCRIPTS))],
    required=("shell",),
    positional="shell",
    reports=False,
)
def completion(settings, console) -> None:
    write_line(SCRIPTS[settings["shell"]].strip(), sys.stdout)
