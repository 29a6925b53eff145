"""Saves again and again under rules of retention; artifacts refer to some, and some are annotated later."""

import json
import os

from metaflow import FlowSpec, checkpoint, current, retry, step

OPTIONS = json.loads(os.environ.get("CKPT_OPTIONS", "{}"))
SAVES = int(os.environ.get("SAVES", "8"))


class RetentionFlow(FlowSpec):
    @retry(times=int(os.environ.get("RETRIES", "0")), minutes_between_retries=0)
    @checkpoint(**OPTIONS)
    @step
    def start(self):
        self.loaded = current.checkpoint.info.version_id if current.checkpoint.is_loaded else None
        path = os.path.join(current.checkpoint.directory, "state")
        references = []
        for number in range(SAVES):
            with open(path, "w") as file:
                file.write(f"{current.retry_count} {number}")
            references.append(current.checkpoint.save(metadata={"number": number}))
            if number == 2:
                self.kept = {"best": [references[-1]]}
            references[-1].wait(60)
        if os.environ.get("ANNOTATE"):
            for number, reference in enumerate(references):
                reference.annotate(loss=abs(3 - number))
        if os.environ.get("RAISES") == "once" and current.retry_count == 0:
            raise ValueError("The user's own error")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RetentionFlow()
