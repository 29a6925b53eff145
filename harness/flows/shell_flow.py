"""A step that leaves saving to a shell script, with nothing but the ``async-ckpt`` command."""

import json
import os
import subprocess

from metaflow import FlowSpec, checkpoint, current, step

SCRIPT = r"""
set -euo pipefail
mkdir -p out/deep && echo one > out/deep/file
async-ckpt save out --name shell --metadata '{"epoch": 1}' --json > first.json
echo two > out/deep/file
async-ckpt save out --name shell --metadata '{"epoch": 2}' --storage-format tar --no-latest --wait --json > second.json
echo alone > single && async-ckpt save single > third.txt
async-ckpt status --json > status.json
async-ckpt flush --timeout 100
async-ckpt status > status.txt
async-ckpt list --json > list.json
async-ckpt list --name shell > list.txt
async-ckpt load "$(python -c 'import json; print(json.load(open("first.json"))["key"])')" back --json > load.json
async-ckpt list | head -n 1 > head.txt
set +e
async-ckpt save no-such-file 2> error.txt; echo $? > error.status
async-ckpt save out --name '' --json > error.json 2> /dev/null; echo $? >> error.status
async-ckpt save out --name a/b 2>> error.txt; echo $? >> error.status
"""


class ShellFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        os.mkdir("shell")
        with open("shell/elsewhere", "w") as file:
            file.write("from the task")
        current.checkpoint.save("shell/elsewhere", name="task")
        subprocess.run(["bash", "-c", SCRIPT], cwd="shell", check=True)
        self.files = {}
        for folder, _, names in os.walk("shell"):
            for name in names:
                path = os.path.join(folder, name)
                with open(path) as file:
                    self.files[os.path.relpath(path, "shell")] = file.read()
        self.json = {name: json.loads(text) for name, text in self.files.items() if name.endswith(".json")}
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ShellFlow()
