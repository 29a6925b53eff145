"""A Hugging Face Hub without a network: each repository is one small file."""

import os


def snapshot_download(repo_id, local_dir, **_):
    os.makedirs(local_dir, exist_ok=True)
    with open(os.path.join(local_dir, "config.json"), "w") as file:
        file.write(f'{{"repo": "{repo_id}"}}')
    return local_dir
