"""Every task of the command line, once: the parser and the help both read this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One thing that `qinco` does.

    name:       what the user types
    summary:    one line of help
    required:   keys that must be given; "a|b" is satisfied by either
    positional: the key whose values are the words without a key; all of them where its kind is "paths" or "texts"
    """

    name: str
    summary: str
    required: tuple[str, ...]
    positional: str | None = None


SHELLS = ("bash", "zsh", "fish")

TASKS = {
    task.name: task
    for task in (
        Task("train", "train a codec", ("output", "trainset|db")),
        Task("eval", "mean squared error over the database", ("model", "db")),
        Task("eval_valset", "mean squared error over the last training vectors", ("model", "trainset|db")),
        Task("eval_time", "microseconds a vector, encoding and decoding", ("model", "db")),
        Task(
            "search",
            "recall@1/10/100 over the decoded database, or recall and time of an index (index=)",
            ("model|index", "db|index", "queries|db", "queries_gt|db"),
        ),
        Task("encode", "vectors to codes", ("model", "db", "output")),
        Task("decode", "codes to vectors", ("model", "codes", "output")),
        Task("info", "what a file holds: qinco info FILE ...", ("file",), "file"),
        Task("ivf_centroids", "coarse centroids by k-means", ("ivf_K", "output", "trainset|db")),
        Task(
            "build_index",
            "look-up tables and an index of encoded vectors",
            ("encoded_trainset", "encoded_db", "trainset|db", "output"),
        ),
        Task(
            "train_pairwise_decoder",
            "pairwise additive decoder of encoded vectors",
            ("encoded_trainset", "trainset|db", "output"),
        ),
        Task("convert", "checkpoints of the authors' code to ours and back", ("model", "output")),
        Task("download", "public data sets and models: qinco download NAME ...", ("name",), "name"),
        Task("doctor", "check the installation", ()),
        Task("bench", "encoding and decoding speed of this machine", ()),
        Task(
            "completion", f"completion of this command line: qinco completion {'|'.join(SHELLS)}", ("shell",), "shell"
        ),
    )
}
