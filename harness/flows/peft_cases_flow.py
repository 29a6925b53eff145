"""What PEFT's integration refuses, in one process."""

import os
import sys

from metaflow import FlowSpec, checkpoint, current, step

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "examples"))


def why(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class PeftCasesFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        import torch
        from peft import LoraConfig, get_peft_model
        from peft_flow import make_base

        from async_ckpt.integrations.peft import frozen_base, load_adapter, save_adapter

        made, self.made = [], []

        def make():
            made.append(make_base())
            return made[-1]

        def adapted(rank):
            config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=["c_attn"], fan_in_fan_out=True)
            return get_peft_model(make_base(), config)

        frozen_base(make, "kept")
        self.made.append(len(made))
        again = frozen_base(make, "kept")
        self.made.append(len(made))
        assert all((value == made[0].state_dict()[name]).all() for name, value in again.state_dict().items())
        assert again.training is made[0].training is True
        frozen_base(make, "named", copy=False)
        assert frozen_base(make, "named", copy=False) is made[-1]
        self.made.append(len(made) - 1)

        def make_another():
            base = make_base()
            with torch.no_grad():
                next(base.parameters()).view(-1)[0].add_(1e-6)
            return base

        self.changed = why(lambda: frozen_base(make_another, "named", copy=False))

        model = adapted(4)
        self.none = load_adapter(model)
        current.checkpoint.load(save_adapter(model))
        assert load_adapter(adapted(4)) == {}, "no state was given"
        found = {"other": why(lambda: load_adapter(adapted(2)))}
        model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"]))
        found["no adapter"] = why(lambda: load_adapter(model))
        current.checkpoint.load(save_adapter(model, {"epoch": 3}))
        frozen_base(make_base, "not saved so far")
        assert load_adapter(model) == {"epoch": 3}

        class Mine(type(made[0])):
            pass

        Mine.__module__, Mine.__qualname__ = "__main__", "Mine"
        base = make_base()
        base.__class__ = Mine
        frozen_base(lambda: base, "mine")
        found["not a class"] = why(lambda: frozen_base(make, "mine"))
        for name, answer in found.items():
            setattr(self, name.replace(" ", "_"), answer)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    PeftCasesFlow()
