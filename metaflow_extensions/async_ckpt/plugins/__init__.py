from ..precedence import take_plugin

STEP_DECORATORS_DESC = [("checkpoint", ".checkpoint_decorator.CheckpointDecorator")]
FLOW_DECORATORS_DESC = []
CLIS_DESC = [("checkpoint", ".checkpoint_cli.cli")]

take_plugin("STEP_DECORATORS_DESC", "checkpoint")
if take_plugin("FLOW_DECORATORS_DESC", "with_artifact_store"):
    FLOW_DECORATORS_DESC.append(("with_artifact_store", ".with_artifact_store.ArtifactStoreDecorator"))
