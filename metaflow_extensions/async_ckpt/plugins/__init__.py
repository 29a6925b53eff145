from ..precedence import take_decorator

STEP_DECORATORS_DESC = [("checkpoint", ".checkpoint_decorator.CheckpointDecorator")]

take_decorator("checkpoint")
