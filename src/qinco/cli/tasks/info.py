"""`qinco info`: what files hold."""

import qinco
from qinco.cli.keys import Key, task
from qinco.errors import DataError


@task(
    "info",
    "what a file holds: qinco info FILE ...",
    keys=[Key("file", "paths", None, "files to describe")],
    required=("file",),
    positional="file",
)
def info(settings, console) -> None:
    results, errors = [], []
    for path in settings["file"]:
        try:
            results.append(qinco.describe(path))
        except DataError as error:
            errors.append(error)
    if settings["json"] and len(settings["file"]) > 1:
        console.print_result({result["file"]: result for result in results}, True)
    else:
        for result in results:
            console.print_result(result, settings["json"])
    for error in errors[:-1]:
        console.warn(str(error))
    if errors:
        raise errors[-1]
