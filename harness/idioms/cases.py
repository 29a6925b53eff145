"""What crossing_flow saves."""

#: name, storage format, what is saved
CASES = [
    ("mfchckpt", "files", "a directory"),
    ("epoch=3-val_loss=0.25", "files", "a directory"),
    ("run.1", "tar", "a directory"),
    ("Qwen2.5-7B", "files", "a file"),
    ("with space", "tar", "a file"),
    ("modèle-日本", "files", "a directory"),
    ("modèle-日本", "tar", "a directory"),
    ("trained_model", "tar", "a directory"),
]
METADATA = {"epoch": 3, "loss": 0.25, "file_names": ["a", "b"], "nested": {"ü": [None, True]}}


def content(writer, number):
    text = f"{writer} {number}"
    return {
        "state.json": text,
        "deep/er/file": f"deep {text}",
        "deep/.hidden": f"hidden {text}",
        "empty": "",
        "é": text,
    }
