"""Tasks without Metaflow: one, many, and a model of one."""
