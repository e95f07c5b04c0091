"""What the shell is offered while the user types, and what bash makes of it."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qinco.cli import main
from qinco.cli.completion import FILES, candidates
from qinco.cli.tasks import TASKS
from qinco.cli.tasks.completion import SCRIPTS
from qinco.datasets.catalogue import DATASETS


@pytest.mark.parametrize("typed, expected", [
    ([""], [*TASKS, "help"]), (["tr"], ["train", "train_pairwise_decoder"]), (["--ver"], ["--version"]),
    (["train", "--c"], ["--cfg"]),
    (["task=d"], ["task=delete", "task=decode", "task=download", "task=doctor"]),
    (["help", "en"], ["encode"]), (["train", "ep"], ["epochs="]),
    (["task=train", "--json-logs", "ep"], ["epochs="]), (["train", "epochs=3", "ep"], []),
    (["train", "search.np"], []), (["search", "search.np"], ["search.nprobe="]),
    (["build_index", "metric=i"], ["metric=inner_product"]),
    (["train_pairwise_decoder", "tables="], ["tables=float32", "tables=float16"]),
    (["search", "index="], [FILES]), (["eval", "epo"], []),
    (["train", "model_args=qinco2"], ["model_args=qinco2-XXS", "model_args=qinco2-XS", "model_args=qinco2-S",
     "model_args=qinco2-M", "model_args=qinco2-L"]),
    (["eval", "model_args=n"], ["model_args=null"]), (["train", "opq="], ["opq=true", "opq=false"]),
    (["train", "scheduler.name="], ["scheduler.name=cosine", "scheduler.name=reduce_lr_plateau",
     "scheduler.name=cooldown"]),
    (["eval", "decoder="], ["decoder=neural", "decoder=lookup", "decoder=pairwise"]),
    (["eval", "device=c"], ["device=cpu", "device=cuda"]), (["eval", "lr="], []), (["eval", "qqq="], []),
    (["train", "output=a"], [FILES]), (["eval", "db="], [FILES, *(f"db={name}" for name in DATASETS)]),
    (["eval", "db=deep1"], [FILES, "db=deep1M", "db=deep1B"]), (["info", ""], [FILES]), (["info", "co"], [FILES]),
    (["info", "js"], ["json="]), (["completion", ""], ["bash", "zsh", "fish"]),
    (["download", "small=t"], ["small=true"]), (["trian", "ep"], []), (["task=a", "task=b", ""], []),
    ([], [*TASKS, "help"]),
])  # fmt: skip
def test_candidates(typed, expected):
    assert candidates(typed) == expected


def test_every_key_of_a_task_is_offered():
    assert set(candidates(["encode", ""])) == {f"{key.name}=" for key in TASKS["encode"].keys}
    assert "name=" not in candidates(["download", ""])
    assert {"bigann1M", "small=", "mirror="} <= set(candidates(["download", "deep1M", ""]))
    assert "deep1M" not in candidates(["download", "deep1M", ""])


def test_the_hidden_entry_prints_candidates_and_never_fails(capsys):
    assert main(["completion", "words", "train", "model_args=qinco1"]) == 0
    assert main(["completion", "words", "--help"]) == 0
    assert main(["completion", "words", "task=a", "task=b", "--", ""]) == 0
    assert capsys.readouterr() == ("model_args=qinco1\n--help\n", "")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts(shell, capsys):
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == SCRIPTS[shell].strip()
    assert "completion words" in shown and FILES in shown
    assert main(["completion"]) == 2
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=shown, text=True, check=False, timeout=30).returncode == 0


bash_only = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def complete(folder: Path, words: list[str], line: str | None = None, breaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    """What bash would offer for the last of `words`, the pieces into which it cuts `line`, the cursor at its end."""
    program = folder / "bin" / "qinco"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m qinco "$@"\n')
    program.chmod(0o755)
    line = " ".join(words) if line is None else line
    last = "" if words[-1] in ("=", ":") else words[-1].lstrip("'\"")
    commands = [
        SCRIPTS["bash"],
        f"COMP_WORDBREAKS={shlex.quote(breaks)}",
        f"COMP_WORDS=({shlex.join([str(program), *words])})",
        f"COMP_CWORD={len(words)}",
        f"COMP_LINE={shlex.quote(f'{program} {line}')}",
        "COMP_POINT=${#COMP_LINE}",
        f"_qinco {shlex.quote(str(program))} {shlex.quote(last)} {shlex.quote(words[-2] if words[1:] else 'qinco')}",
        r"""[ ${#COMPREPLY[@]} = 0 ] || printf '%s\n' "${COMPREPLY[@]}" """,
    ]
    command = ["bash", "--norc", "--noprofile", "-c", "\n".join(commands)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@bash_only
def test_bash_completes_tasks_keys_and_values(tmp_path):
    assert complete(tmp_path, ["tr"]) == ["train", "train_pairwise_decoder"]
    assert complete(tmp_path, [""]) == [*TASKS, "help"]
    assert complete(tmp_path, ["train", "ep"], "train  ep") == ["epochs="]
    assert complete(tmp_path, ["train", "qqq"]) == []


@bash_only
def test_bash_gets_only_what_follows_the_equals_sign(tmp_path):
    values = ["qinco2-XXS", "qinco2-XS", "qinco2-S", "qinco2-M", "qinco2-L"]
    assert complete(tmp_path, ["train", "model_args", "=", "qinco2"], "train model_args=qinco2") == values
    assert complete(tmp_path, ["train", "cpu", "="], "train cpu=") == ["true", "false"]
    # task=train, as bash cuts it
    assert complete(tmp_path, ["task", "=", "train", "epo"], "task=train epo") == ["epochs="]
    whole = [f"model_args={value}" for value in values]
    assert complete(tmp_path, ["train", "model_args=qinco2"], breaks=" \t\n") == whole


@bash_only
def test_bash_completes_files_itself(tmp_path):
    for name in ("deep.npy", "a=b.npy", "other.npy"):
        (tmp_path / name).touch()
    for words, line in (
        (["eval", "model", "=", "de"], "eval model=de"),
        (["eval", "model", "=", "'de"], "eval model='de"),
        (["info", "de"], "info de"),
    ):
        assert complete(tmp_path, words, line) == []  # -o default then completes the name of a file
    assert complete(tmp_path, ["eval", "db", "=", "deep"], "eval db=deep") == ["deep1M", "deep1B", "deep.npy"]
    assert complete(tmp_path, ["eval", "model", "=", "a", "=", "b"], "eval model=a=b") == ["b.npy"]
    assert complete(tmp_path, ["eval", "model=de"], breaks=" \t\n") == ["model=deep.npy"]


@bash_only
def test_bash_completes_up_to_the_cursor(tmp_path):
    """The cursor stands behind `ep`; the rest of the line, and of its word, is not there yet."""
    script = SCRIPTS["bash"].replace('"$1" completion words', "printf '%s\\n'")
    variables = (
        "COMP_WORDS=(qinco train epoch lr = 3); COMP_CWORD=2; COMP_LINE='qinco  train epoch lr=3'; COMP_POINT=15"
    )
    command = f'{script}\n{variables}\n_qinco qinco ep train\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["train", "ep"]
