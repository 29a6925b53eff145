"""What a flow of this folder notes down of what it sees, so that two environments can be compared.

Everything that differs between two runs of one flow by nature is left out: run ids, hashes of them, times, temporary
paths. ``SEEN`` names the file.
"""

import json
import os


def saw(what, value):
    """Note ``value`` (JSON) down under ``what``; each line is one write, so that processes may note side by side."""
    line = json.dumps({"what": what, "value": value}, sort_keys=True) + "\n"
    file = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def tree(directory):
    """Relative path → content of every file, as a program that opens it reads it; empty directories end in a slash."""
    found = {}
    for folder, names, files in os.walk(directory):
        inner = os.path.relpath(folder, directory)
        for name in files:
            path = os.path.normpath(os.path.join(inner, name))
            try:
                with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
                    found[path] = file.read()
            except OSError as error:
                found[path] = type(error).__name__
        if not names and not files and inner != ".":
            found[inner + "/"] = None
    return found


def write(directory, files):
    """Make files (path → content) in a directory; returns it. A path with a slash at its end is an empty directory."""
    for path, content in files.items():
        whole = os.path.join(directory, path)
        os.makedirs(whole if path.endswith("/") else os.path.dirname(whole), exist_ok=True)
        if not path.endswith("/"):
            # To another file and renamed: what metaflow-checkpoint loads from a local datastore are the datastore's own
            # files, and writing into one would change the checkpoint.
            with open(whole + ".new", "w", encoding="utf-8") as file:
                file.write(content)
            os.replace(whole + ".new", whole)
    return directory


def told(reference, *without):
    """The fields of a reference that users read and that are the same in every run; ``without`` are left out."""
    data = dict(reference) if isinstance(reference, dict) else reference.to_dict()
    flow, _, step, _ = data["pathspec"].split("/")
    folder, _, stem = data["key"].rpartition("/")
    fields = {
        **{name: data[name] for name in ("name", "attempt", "size", "metadata", "storage_format", "type")},
        "version_id": data["version_id"],
        "of": f"{flow}/{step}",
        "key": f"{folder}/*.{stem.partition('.')[2]}",
    }
    if "version_id" in without:
        fields["key"] = fields["key"].rpartition(".")[0]
    return {name: value for name, value in fields.items() if name not in without}


def outcome(function, *arguments, **options):
    """What a call comes to: ["ok", what it returns], or ["failed", the names of its error's classes]."""
    try:
        return ["ok", function(*arguments, **options)]
    except Exception as error:
        return ["failed", [kind.__name__ for kind in type(error).__mro__ if kind not in (object, BaseException)]]
